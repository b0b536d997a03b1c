"""Engines run where the placement says, and on the CPU in a run on the CPU; the name of the user's model."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tau2_lightning.environment import UserSettings
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.policy.chat_templates import template_source
from tau2_lightning.policy.tiny import chat_template
from tau2_lightning.rollout import engines
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.reasoning import MARKS
from tau2_lightning.rollout.engine.command import server_environment
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.run.compose import load_config
from tests.environment.user_server import serving as user_server
from tests.jobs import small_policy


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


def test_the_chat_format_has_the_configured_template_and_parsers(tmp_path_factory: pytest.TempPathFactory) -> None:
    policy = small_policy(tmp_path_factory)

    def made(*words: str) -> ChatFormat:
        return engines.chat_format_of(load_config([f"actor.path={policy}", *words], check=False), policy)

    own, other = made(), made("actor.chat_template=qwen3", "rollout.reasoning_parser=mistral")
    assert own.template.source == chat_template() and other.template.source == template_source("qwen3")
    assert other.marks == MARKS["mistral"] and made("actor.chat_template=qwen3").marks == MARKS["think"]
    assert made("actor.chat_template=qwen3", "rollout.reasoning_parser=null").marks is None
    assert type(made("rollout.tool_call_parser=pythonic").tool_parser) is not type(own.tool_parser)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("words", "device"),
    [([], "auto"), (["cluster.n_gpus_per_node=0"], "cpu"), (["trainer.accelerator=cpu"], "cpu")],
)
async def test_a_run_on_cpu_has_its_engines_there(
    words: list[str], device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(["domain=mock", "econfig.user_engine.path=some/model", *words], check=False)
    policy = engines.engine_settings(config, tmp_path, tmp_path / "engine.log")
    assert policy.device == device
    assert policy.on_cpu == (server_environment(policy, 0).get("CUDA_VISIBLE_DEVICES") == "")

    class Asked(Exception):
        """Raised instead of starting a pool; its argument is the settings of the pool."""

    def pool(settings: EngineSettings) -> None:
        raise Asked(settings)

    monkeypatch.setattr(engines, "EnginePool", pool)
    async with AsyncExitStack() as stack:
        with pytest.raises(Asked) as asked:
            await engines.serve_user(config, UserSettings(kind="llm", llm="user"), stack, tmp_path / "user.log")
    assert asked.value.args[0].device == device


@pytest.mark.parametrize(("words", "name"), [((), "user-7b"), (("econfig.user_llm=openai/named",), "openai/named")])
async def test_the_user_at_a_url_is_called_what_its_server_calls_it(words, name, tmp_path: Path) -> None:
    async with user_server() as (_, url), AsyncExitStack() as stack:
        config = load_config(["domain=retail", f"econfig.user_llm_base_url={url}", *words])
        user = await engines.settle_user(config, environment_settings(config.econfig).user, stack, tmp_path / "log")
        assert (user.llm, user.base_url) == (name, url)


async def test_a_scripted_user_is_what_it_is(tmp_path: Path) -> None:
    config = load_config(["domain=retail", "econfig.user=scripted"])
    user = environment_settings(config.econfig).user
    async with AsyncExitStack() as stack:
        assert await engines.settle_user(config, user, stack, tmp_path / "log") is user
