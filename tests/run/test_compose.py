"""Command line words become a checked configuration, or one error that lists everything wrong with them."""

import pytest

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.compose import compose_dict, load_config


def keys(error: pytest.ExceptionInfo[ConfigError]) -> set[str]:
    return {violation.key for violation in error.value.violations}


def test_default_is_the_main_job():
    config = load_config(["domain=telecom"])
    assert config.econfig.domain == "telecom"
    assert config.econfig.solo_mode is True
    assert config.econfig.policy == "ticket"
    assert config.tiny


def test_every_seed_override_is_accepted_under_its_own_name(tmp_path):
    words = [
        "experiment_name=tau2-grpo",
        "trial_name=run-airline",
        "cluster.n_nodes=2",
        "cluster.n_gpus_per_node=8",
        "allocation_mode=sglang:d4t2+archon:d4p2t1",
        "scheduler.type=slurm",
        "train_dataset.batch_size=4",
        "gconfig.n_samples=4",
        "econfig.domain=airline",
        "econfig.max_steps=200",
        "econfig.solo_mode=false",
        "econfig.user_llm=user-model",
        "econfig.user_llm_base_url=http://127.0.0.1:8000/v1",
        "econfig.user_llm_args={temperature: 0.0}",
        "econfig.turn_discount=0.9",
        "econfig.invalid_format_penalty=0.1",
        "actor.path=some/model",
    ]
    config = load_config(words, check=False)
    assert config.allocation_mode == "sglang:d4t2+archon:d4p2t1"
    assert config.econfig.user_llm_args == {"temperature": 0.0}
    assert config.algorithm["turn_discount"] == 0.9
    assert config.algorithm["invalid_format_penalty"] == 0.1


def test_keys_of_open_sections_need_no_plus_signs():
    words = ["econfig.user_llm_args.temperature=0.5", "scheduler.slurm.partition=gpu", "scheduler.slurm.time=60"]
    config = load_config(words, check=False)
    assert config.econfig.user_llm_args == {"temperature": 0.5}
    assert config.scheduler.slurm == {"partition": "gpu", "time": 60}


def test_actor_path_chooses_settings_for_a_real_model():
    tiny, real = load_config([], check=False), load_config(["actor.path=some/model"], check=False)
    assert real.actor.optimizer.lr < tiny.actor.optimizer.lr / 10
    assert load_config(["actor.path=some/model", "actor=tiny"], check=False).actor.optimizer == tiny.actor.optimizer


def test_domain_group_follows_econfig_domain():
    assert load_config(["econfig.domain=retail"], check=False).train_dataset.split == "train"
    assert load_config(["domain=retail"], check=False).econfig.domain == "retail"


@pytest.mark.parametrize("word", ["domain=theirs", "econfig.domain=theirs"])
def test_a_domain_without_a_file_here_is_for_tau2s_registry_to_know(word):
    config = load_config([word], check=False)
    assert (config.econfig.domain, config.train_dataset.split) == ("theirs", "train")
    with pytest.raises(ConfigError, match="econfig.domain='theirs'.*telecom"):
        load_config([word])


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("gconfg.n_samples=4", "gconfig.n_samples"),
        ("train_dataset.batchsize=4", "train_dataset.batch_size"),
        ("alocation_mode=vllm:d1+archon:d1", "allocation_mode"),
        ("lr=1e-4", "actor.optimizer.lr"),
        ("trainer.ppo_n_minibatches=1", "actor.ppo_n_minibatches"),
    ],
)
def test_misspelt_key_names_the_nearest(word, nearest):
    with pytest.raises(ConfigError, match=f"Did you mean {nearest}"):
        load_config([word], check=False)


def test_unknown_choice_of_a_group_lists_the_choices():
    with pytest.raises(ConfigError, match="csv, tensorboard, wandb"):
        load_config(["logger=mlflow"], check=False)


def test_all_violations_at_once_across_layers():
    with pytest.raises(ConfigError) as error:
        load_config(
            [
                "gconfig.n_samples=1",
                "econfig.domain=nowhere",
                "allocation_mode=vllm:d0",
                "gconfig.max_new_tokens=4096",
                "actor.ppo_n_minibatches=3",
                "ckpt_path=/does/not/exist.ckpt",
            ]
        )
    assert keys(error) == {
        "gconfig.n_samples",
        "econfig.domain",
        "allocation_mode",
        "gconfig.max_new_tokens",
        "train_dataset.batch_size",
        "ckpt_path",
    }


def test_adapters_and_copies_are_checked_against_engine_and_layout():
    words = ["actor.lora.r=600", "actor.fsdp.replicate=3", "allocation_mode=vllm:d1+archon:d4"]
    with pytest.raises(ConfigError, match=r"replicate=3: does not divide the 4 ranks") as error:
        load_config(words)
    assert keys(error) == {"actor.lora.r", "actor.fsdp.replicate"}
    load_config(["actor.lora.r=600", "actor.lora.sync=merged", "actor.fsdp.replicate=2", words[-1]])


def test_allocation_error_points_at_the_character():
    with pytest.raises(ConfigError) as error:
        load_config(["allocation_mode=vllm:d1+archon:d2d2"])
    shown = str(error.value)
    assert "vllm:d1+archon:d2d2" in shown
    quoted, caret = shown.splitlines()[-2:]
    assert quoted[caret.index("^") :] == "d2"  # the second d2


def test_domain_without_solo_mode_and_user():
    with pytest.raises(ConfigError, match=r"user_llm_base_url.*needs a user simulator"):
        load_config(["domain=retail"])


def test_solo_mode_where_there_is_none():
    with pytest.raises(ConfigError, match="no solo mode"):
        load_config(["domain=airline", "econfig.solo_mode=true"])


def test_unknown_split_lists_the_splits():
    with pytest.raises(ConfigError, match=r"no such split.*train"):
        load_config(["valid_dataset.split=dev"])


def test_taken_port_is_refused():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"rollout.port={port}.*taken"):
            load_config([f"rollout.port={port}"])


def test_model_path_that_does_not_exist():
    with pytest.raises(ConfigError, match="actor.path"):
        load_config(["actor.path=./no/such/model"])


def test_missing_vllm_is_named(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else real(name, *a))
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        load_config([])


def test_schema_and_files_agree():
    """Every key of the schema is in conf/, so that it can be overridden and is documented."""

    def compare(model, node, path=""):
        for name, field in model.model_fields.items():
            assert name in node, f"{path}{name} is missing in conf/"
            if hasattr(field.annotation, "model_fields"):
                compare(field.annotation, node[name], f"{path}{name}.")

    compare(RunConfig, compose_dict([]))


@pytest.mark.parametrize(
    "text", ["vllm:d2|archon:d2", "vllm:d1+vllm[user]:t2+archon:d1", "vllm:d4+archon:(attn:d2p1t2|ffn:e4)", "vllm:d'1"]
)
def test_every_allocation_reaches_its_parser_as_it_was_written(text: str):
    assert load_config([f"allocation_mode={text}"], check=False).allocation_mode == text
    if "'" not in text:
        assert load_config([f"allocation_mode='{text}'"], check=False).allocation_mode == text


def test_sbatch_has_keys_of_its_own():
    words = ["scheduler.slurm.partition=gpu", "scheduler.slurm.time=60"]
    assert load_config(words, check=False).scheduler.slurm == {"partition": "gpu", "time": 60}


def test_unknown_keys_wrong_types_and_broken_rules_are_reported_together() -> None:
    words = ["domain=mock", "actor.optimizer.lrr=3", "rollout.retries=-1", "gconfig.max_new_tokens=4096"]
    with pytest.raises(ConfigError) as error:
        load_config(words)
    keys = {violation.key for violation in error.value.violations}
    assert {"actor.optimizer.lrr", "rollout.retries", "gconfig.max_new_tokens"} <= keys


def test_a_wrong_allocation_is_reported_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["domain=mock", "allocation_mode=vllm:d1+archon:q2"])
    assert [violation.key for violation in error.value.violations] == ["allocation_mode"]


@pytest.mark.parametrize("removed", ["~logger", "~actor", "~seed", "~rollout.retries", "~trainer.max_epochs"])
def test_what_was_removed_is_named_without_its_section(removed: str) -> None:
    secrets = ["econfig.user_llm_api_key=SENTINEL", "rollout.engine_api_key=SENTINEL"]
    with pytest.raises(ConfigError, match="was removed") as error:
        load_config([removed, *secrets], check=False)
    assert "SENTINEL" not in str(error.value) and "{" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("trainer.max_time={hours: 1.5}", "trainer.max_time"),
        ("trainer.limit_val_batches=abc", "trainer.limit_val_batches"),
    ],
)
def test_a_wrong_value_of_several_types_is_one_violation_of_its_key(word: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["domain=mock", "econfig.user=scripted", word])
    assert [violation.key.removesuffix(".hours") for violation in error.value.violations] == [key]


@pytest.mark.parametrize("word", ["logger=null", "callbacks=null"])
def test_a_group_that_must_be_chosen_cannot_be_null(word: str) -> None:
    with pytest.raises(ConfigError, match="no such choice"):
        load_config([word], check=False)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("experiment_name=größe", "and other signs need quotes. Write \"experiment_name='größe'\""),
        ('experiment_name=a"$b', r"""Write 'experiment_name='"'"'a"$b'"'"'' to give it as plain text"""),
        ("seed==5", "brackets and quotes must close"),
        ("seed=${no.where}", "seed='${no.where}': refers to no.where, and there is no such key"),
        ("seed=${oc.env:NO_SUCH}", "the environment variable NO_SUCH is not set. Set it, or give a default: ${oc.env:"),
        ("trial_name=2024", "trial_name=2024: must be text, and is read as a number. Put it in quotes"),
        ("trial_name=true", "must be text, and is read as true or false"),
        ("seed=true", "seed=True: must be a number, not true or false"),
        ("gconfig.top_k=false", "gconfig.top_k=False: must be a number, not true or false"),
        ("gconfig=null", "gconfig=None: is a section, which holds keys and no value of its own"),
    ],
)
def test_what_users_mistype_most_is_refused_in_plain_words(word: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config([word, "valid_dataset.num_trials=x", "no.such=1", "actor.path=${open"], check=False)
    shown = str(error.value)
    assert line in shown
    assert {"valid_dataset.num_trials", "no.such", "command line"} <= keys(error), "all mistakes are in one report"
    assert not any(name in shown for name in ("Lexer", "full_key", "<EOF>", "hydra.cc"))


def test_text_in_quotes_may_be_anything() -> None:
    config = load_config(["trial_name='2024'", "experiment_name='größe 日本'"], check=False)
    assert (config.trial_name, config.experiment_name) == ("2024", "größe 日本")
