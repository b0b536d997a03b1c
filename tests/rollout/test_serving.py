"""What a run settles about its user before the first episode. Engines of the user's own: tests/e2e/test_main_job.py."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tau2_lightning.compose import load_config
from tau2_lightning.config_rules import environment_settings
from tau2_lightning.rollout.serving import settle_user
from tests.environment.test_users import serving


@pytest.mark.parametrize(("words", "name"), [((), "user-7b"), (("econfig.user_llm=openai/named",), "openai/named")])
async def test_the_user_at_a_url_is_called_what_its_server_calls_it(words, name, tmp_path: Path) -> None:
    async with serving() as (_, url), AsyncExitStack() as stack:
        config = load_config(["domain=retail", f"econfig.user_llm_base_url={url}", *words])
        user = await settle_user(config, environment_settings(config).user, stack, tmp_path / "log")
        assert (user.llm, user.base_url) == (name, url)


async def test_a_scripted_user_is_what_it_is(tmp_path: Path) -> None:
    config = load_config(["domain=retail", "econfig.user=scripted"])
    user = environment_settings(config).user
    async with AsyncExitStack() as stack:
        assert await settle_user(config, user, stack, tmp_path / "log") is user
