"""The proxy on its own: ``python -m tau2_lightning.serve actor.path=FOLDER [rollout.engine_urls=[URL]]``.

``python -m tau2_lightning.rollout.proxy`` is the same command.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.run.cli import Command, run_command
from tau2_lightning.run.compose import load_config, refuse_plan

if TYPE_CHECKING:
    from tau2_lightning.config.schema import RunConfig
    from tau2_lightning.rollout.proxy.settings import ProxySettings

ABOUT = """Serve a policy as an OpenAI API with recorded sessions.

  actor.path=FOLDER_OR_ID            the policy; an engine is launched for it
  rollout.engine_urls=[http://...]   running engines instead
  rollout.host, rollout.port         where the proxy listens

Keys are read from TAU2_LIGHTNING_ADMIN_KEY and TAU2_LIGHTNING_CLIENT_KEY, or made and printed. Ctrl-C stops it.
"""


def main(argv: Sequence[str] | None = None, module: str = "tau2_lightning.serve") -> int:
    """Command line entry; ``module`` is the name it was started under.

    Returns 0 when stopped, 1 on a failure, 2 for a bad configuration.
    """
    return run_command(Command(module, ABOUT, _main, repeatable=False), argv)


def _main(words: list[str]) -> int:
    config = load_config(words, check=False)
    refuse_plan(config)
    if config.actor.path is None:
        problem = "the proxy needs a tokenizer and, unless an engine runs, weights"
        raise ConfigError([Violation("actor.path", None, problem, "Name a Hugging Face folder or id.")])
    # Imported here, because `--help` needs neither torch nor transformers.
    import uvloop

    from tau2_lightning.policy.gguf import given_policy
    from tau2_lightning.run.exposure_rules import check_exposure
    from tau2_lightning.run.generation_rules import check_words
    from tau2_lightning.run.templates import check_template
    from tau2_lightning.run.url_rules import check_urls
    from tau2_lightning.strategy.weight_check import weight_violations

    exposed = [*check_urls(config), *check_exposure(config)]
    if exposed:
        raise ConfigError(exposed)

    try:
        # The tokenizer alone is found by its id; weights are fetched before the engine's time to start begins.
        running = bool(config.rollout.engine_urls)
        policy = Path(config.actor.path) if running else given_policy(config.actor)
        config, problems = check_template(config, policy)
        problems += [*check_words(config), *weight_violations(policy)]
        if problems:
            raise ConfigError(problems)
        uvloop.run(serve(config, policy))
    except KeyboardInterrupt:
        return 0
    return 0


async def serve(config: RunConfig, policy: Path) -> None:
    """Start engine and proxy, print their addresses, and serve until SIGINT, SIGTERM or SIGHUP."""
    from tau2_lightning.rollout.engine.pool import EnginePool
    from tau2_lightning.rollout.engines import chat_format_of, engine_settings
    from tau2_lightning.rollout.proxy.app import create_app
    from tau2_lightning.rollout.proxy.chat_service import ChatService
    from tau2_lightning.rollout.proxy.server import ProxyServer
    from tau2_lightning.rollout.session.store import SessionSettings, SessionStore

    settings = _settings(config)
    stopped = asyncio.Event()
    heeded = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
        heeded.append(signal.SIGHUP)
    for number in heeded:
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    econfig = config.econfig
    store = SessionStore(
        SessionSettings(econfig.invalid_format_penalty, econfig.turn_discount, config.rollout.session_timeout)
    )
    chat_format = await asyncio.to_thread(chat_format_of, config, policy)
    # From here on a signal ends this function in order, so that the folder of the log goes with it.
    log_path = Path(tempfile.mkdtemp(prefix="tau2-lightning-proxy-")) / "engine.log"
    pool = EnginePool(engine_settings(config, policy, log_path))
    app = create_app(ChatService(store, chat_format, pool, settings))
    server = ProxyServer(app, config.rollout.host, config.rollout.port)
    try:
        await server.start()
        await pool.start()
        print(f"OPENAI_BASE_URL={server.base_url}", flush=True)
        if not config.rollout.engine_urls:
            print(f"# the engine's log: {log_path}", flush=True)
        for name, key in (("ADMIN", settings.admin_key), ("CLIENT", settings.client_key)):
            if not os.environ.get(f"TAU2_LIGHTNING_{name}_KEY"):
                print(f"TAU2_LIGHTNING_{name}_KEY={key}", flush=True)
        ready = asyncio.ensure_future(pool.wait_ready())
        ending = asyncio.ensure_future(stopped.wait())
        await asyncio.wait((ready, ending), return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            print("ready", flush=True)
            await ending
        ready.cancel()
    finally:
        await server.stop()
        await pool.stop()
        # After a failure the log is what tells why; its error names the file.
        if stopped.is_set() or not log_path.exists():
            shutil.rmtree(log_path.parent, ignore_errors=True)


def _settings(config: RunConfig) -> ProxySettings:
    from tau2_lightning.rollout.proxy.settings import ProxySettings

    keys = {name: os.environ.get(f"TAU2_LIGHTNING_{name.upper()}") for name in ("admin_key", "client_key")}
    return ProxySettings.of(config, **{name: key for name, key in keys.items() if key})


if __name__ == "__main__":
    sys.exit(main())
