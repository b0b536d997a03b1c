"""No code comes with data: checkpoints, results files, policies, messages of the network, and the configuration."""

from __future__ import annotations

import ast
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

import tau2_lightning
from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.manifest import write_manifest
from tau2_lightning.launch.run_folder import META, RunFolder
from tau2_lightning.run.checkpoints import resolve_checkpoint
from tau2_lightning.run.compose import load_config
from tau2_lightning.strategy.checkpoint import read_meta
from tau2_lightning.strategy.checkpoint_reader import read_into, stored_tensors

PACKAGE = Path(tau2_lightning.__file__).parent
# Where the package may read a pickle: copies of this process's own objects, and a checkpoint's description through a
# reader that knows a few classes.
OWN_PICKLES = {"environment/databases/cloning.py", "strategy/checkpoint_reader.py"}
OTHER_PICKLE_NAMES = {"environment/blueprints.py", "environment/databases/copy_on_write.py"}  # they catch its errors
# They write what another program reads: SGLang's route for tensors (docs/security.md).
WRITTEN_PICKLES = {"rollout/weights/sglang_transports.py"}
PICKLES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
RUN = "executed"


class Bomb:
    """Runs a program when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {RUN}",)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / RUN).exists(), "it was executed"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "step1.ckpt"
    dcp.save({"policy.w": torch.arange(6.0).view(2, 3), "policy.b": torch.ones(2, dtype=torch.bfloat16)},
             checkpoint_id=str(folder), no_dist=True)  # fmt: skip
    torch.save({"weights_version": 1}, folder / META)
    return folder


def spoil(folder: Path, change: Any) -> None:
    """Change a checkpoint's description as somebody could who hands it on, digests included."""
    file = folder / ".metadata"
    described = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps(change(described)))
    write_manifest(folder)


def test_the_bomb_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: torch's own reader runs it."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb()))
    monkeypatch.chdir(folder)
    with pytest.raises(AttributeError):
        dcp.FileSystemReader(str(folder)).read_metadata()
    assert (folder / RUN).exists()


def test_a_checkpoint_of_ours_is_read(checkpoint: Path) -> None:
    assert {name: tuple(entry.size) for name, entry in stored_tensors(checkpoint).items()} == {
        "policy.w": (2, 3), "policy.b": (2,),
    }  # fmt: skip
    w, b = torch.zeros(2, 3), torch.zeros(2, dtype=torch.bfloat16)
    read_into(checkpoint, {"policy.w": w, "policy.b": b}, alone=True)
    assert w.tolist() == [[0, 1, 2], [3, 4, 5]] and b.tolist() == [1, 1]


def with_bomb(described: Any) -> Any:
    return Bomb()


def with_bomb_inside(described: Any) -> Any:
    described.planner_data = Bomb()
    return described


def with_bytes(described: Any) -> Any:
    """An entry that torch reads with ``torch.load(weights_only=False)``."""
    described.state_dict_metadata["policy.w"] = BytesStorageMetadata()
    return described


def with_other_file(described: Any) -> Any:
    for place in described.storage_data.values():
        place.relative_path = "../../elsewhere"
    return described


def with_object(described: Any) -> Any:
    return {"policy.w": 1}


CHANGES = [with_bomb, with_bomb_inside, with_bytes, with_other_file, with_object]


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_a_checkpoints_description_runs_nothing(change: Any, checkpoint: Path) -> None:
    spoil(checkpoint, change)
    with pytest.raises(ConfigError, match=r"ckpt_path=.*its \.metadata cannot be read"):
        stored_tensors(checkpoint)
    with pytest.raises((CheckpointException, pickle.UnpicklingError)):
        read_into(checkpoint, {"policy.w": torch.zeros(2, 3)}, alone=True)


@pytest.mark.parametrize("content", [Bomb(), {"weights_version": 1, "state": Bomb()}], ids=["whole", "inside"])
def test_the_rest_of_a_checkpoint_runs_nothing(content: Any, checkpoint: Path) -> None:
    torch.save(content, checkpoint / META)
    write_manifest(checkpoint)
    with pytest.raises(pickle.UnpicklingError):
        read_meta(checkpoint)
    config = load_config(["domain=mock", f"ckpt_path={checkpoint}", "logger=csv"], check=False)
    with pytest.raises(ConfigError, match=r"is damaged: meta\.pt cannot be read"):
        resolve_checkpoint(config, RunFolder(checkpoint.parent))


def test_a_tensor_file_of_a_checkpoint_runs_nothing(checkpoint: Path) -> None:
    for file in checkpoint.glob("*.distcp"):
        torch.save(Bomb(), file)
    with pytest.raises((CheckpointException, pickle.UnpicklingError)):
        read_into(checkpoint, {"policy.w": torch.zeros(2, 3)}, alone=True)


def test_the_package_reads_no_other_pickle() -> None:
    """The kind: a new ``pickle.load``, ``torch.load`` without ``weights_only``, ``yaml.load``, ``eval`` and the like is
    found here."""
    wrong: list[str] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [one.name for one in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                if (
                    PICKLES & {one.partition(".")[0] for one in modules}
                    and name not in OWN_PICKLES | OTHER_PICKLE_NAMES | WRITTEN_PICKLES
                ):
                    wrong.append(f"{name}:{node.lineno} imports {modules}")
            if isinstance(node, ast.Call):
                wrong += [f"{name}:{node.lineno} {what}" for what in unsafe(node, name)]
    assert wrong == []


def unsafe(node: ast.Call, name: str) -> list[str]:
    """What is unsafe in a call."""
    called = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    found = []
    if called in ("eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"):
        found.append(called)
    if called.startswith("pickle.load") and name not in OWN_PICKLES:
        found.append(called)
    if called == "torch.load" and given.get("weights_only") != "True":
        found.append(called)
    if called.endswith(("FileSystemReader", "dcp.load")) and name not in OWN_PICKLES:
        found.append(f"{called}: use strategy.checkpoint_reader")
    if called.endswith(("np.load", "read_array", "numpy.load")) and given.get("allow_pickle") == "True":
        found.append(called)
    if given.get("shell") == "True" or given.get("trust_remote_code") not in (None, "False"):
        found.append(called)
    if called.endswith(".from_pretrained") and called.startswith("Auto") and given.get("trust_remote_code") != "False":
        found.append(f"{called} without trust_remote_code=False")
    return found


@pytest.mark.parametrize(
    "line",
    ["pickle.loads(x)", "torch.load(x)", "eval(x)", "yaml.load(x)", "subprocess.run(x, shell=True)",
        "np.load(x, allow_pickle=True)",
     "AutoModel.from_pretrained(x)", "AutoConfig.from_pretrained(x, trust_remote_code=config.trust)", "dcp.load(x)"],
)  # fmt: skip
def test_the_check_can_fail(line: str) -> None:
    (statement,) = ast.parse(line).body
    assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    assert unsafe(statement.value, "module.py")


PLACES = [
    "econfig.user_llm_args={_target_: os.system, command: 'touch executed'}",
    "gconfig.chat_template_kwargs={_target_: os.system, command: 'touch executed'}",
    "econfig.retrieval_config_kwargs={_target_: os.system, command: 'touch executed'}",
    "scheduler.slurm={_target_: os.system, command: 'touch executed'}",
    "actor.megatron={_target_: os.system, command: 'touch executed'}",
    "trainer={_target_: os.system, command: 'touch executed'}",
    "+trainer.plugins={_target_: os.system, command: 'touch executed'}",
    "actor.optimizer={_target_: os.system, command: 'touch executed'}",
    "domains={mock: {_target_: os.system, command: 'touch executed'}}",
    "+callbacks.mine={_target_: os.system, command: 'touch executed'}",
    "+logger.mine={_target_: os.system, command: 'touch executed'}",
    "rollout.workflow={_target_: os.system, command: 'touch executed'}",
    "algorithm._target_=os.system",
    "algorithm._target_=unittest.__main__.main",
    "+callbacks.mine._target_=unittest.__main__.main",
    "rollout.workflow={_target_: unittest.__main__.main}",
    "seed=${oc.create:{_target_: os.system}}",
    "experiment_name='!!python/object/apply:os.system [touch executed]'",
]


@pytest.mark.parametrize("word", PLACES)
def test_only_four_places_name_a_class_and_none_names_a_program(word: str) -> None:
    """``callbacks``, ``logger``, ``rollout.workflow`` and ``algorithm`` name classes of their contract. Elsewhere
    ``_target_`` is a key like any other."""
    try:
        config = load_config(["domain=mock", "logger=csv", word])
    except ConfigError:
        return
    assert "_target_" in str(config.model_dump()) or "python/object" in config.experiment_name


def test_a_file_of_the_configuration_is_read_as_plain_yaml(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment"
    experiment.mkdir()
    (experiment / "mine.yaml").write_text(
        "# @package _global_\nseed: !!python/object/apply:os.system ['touch executed']\n"
    )
    with pytest.raises(ConfigError):
        load_config(["domain=mock", f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"], check=False)


def test_a_chat_template_of_somebody_else_reaches_no_file() -> None:
    """Templates of policies are Jinja in its sandbox."""
    from tau2_lightning.rollout.chat.format import ChatFormat
    from tau2_lightning.rollout.chat.template import ChatFormatError
    from tests.rollout.proxy.fixtures import TINY, byte_tokenizer

    attacks = [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch executed') }}",
        "{% import 'os' as os %}{{ os.system('touch executed') }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
    ]
    fine = ChatFormat(byte_tokenizer(TINY), "hermes")
    assert fine.render_text([{"role": "user", "content": attacks[0]}]).count("__subclasses__") == 1, (
        "text, not a template"
    )
    for attack in attacks:
        chat = ChatFormat(byte_tokenizer(TINY), "hermes")
        chat._template.source = attack + TINY
        try:
            text = chat.render_text([{"role": "user", "content": "x"}])
        except ChatFormatError:
            continue
        assert "subclass" not in text and "root:" not in text and "<class" not in text


def test_a_results_file_of_somebody_else_stays_text(tmp_path: Path) -> None:
    """Of a model's words in a report: no markup of theirs is in the page outside its packed data."""
    from tau2_lightning.report.packed import packed

    attack = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    shown = packed({"text": attack, "nested": [attack]})
    assert "<" not in shown and ">" not in shown and "alert" not in shown


def test_objects_do_not_travel_between_ranks_of_ours(tmp_path: Path) -> None:
    """What rank 0 tells the others is JSON or raw tensors: no collective of objects, which torch pickles, is called."""
    collectives = (
        "broadcast_object_list",
        "all_gather_object",
        "gather_object",
        "scatter_object_list",
        "send_object_list",
    )
    users = [str(path) for path in PACKAGE.rglob("*.py") if any(name in path.read_text() for name in collectives)]
    assert users == []


def test_the_network_of_the_tests_is_closed_to_others() -> None:
    """Every server of the package listens on loopback unless told otherwise."""
    from tau2_lightning.rollout.engine.place import EnginePlace
    from tau2_lightning.rollout.proxy.server import ProxyServer

    config = load_config(["domain=mock", "logger=csv"], check=False)
    assert EnginePlace().host == config.rollout.host == ProxyServer(None).host == "127.0.0.1"
