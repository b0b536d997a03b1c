"""Every command of every page: program and keys exist, values have the right types, and plans are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tau2_lightning import train
from tau2_lightning.errors import ConfigError
from tau2_lightning.run import plan_time
from tests.run.models import described

from .checks import Wrong, check
from .pages import PAGES, Shown, commands, commands_of

COMMANDS = commands()
PLANS = [one for one in COMMANDS if "mode=plan" in one.words and "my_train.py" not in one.words]
# What a plan may miss on this machine: cluster, GPUs, engines, a model's tokenizer and weights, the user's server.
MACHINE = {"scheduler.type", "cluster.n_gpus_per_node", "rollout.engine_urls", "actor.path", "allocation_mode"}
ENTRY = re.compile(r"-m tau2_lightning\.(train|sft|serve|rollout\.proxy|export|report|evaluation\.report)\b")


@pytest.mark.parametrize("shown", COMMANDS, ids=str)
def test_a_documented_command_is_taken(shown: Shown) -> None:
    check(shown.words)


def test_there_are_commands_and_none_hides_outside_of_a_block() -> None:
    assert len(COMMANDS) > 80
    for page in PAGES:
        text = page.read_text()
        # A command in a sentence or a table stands between backticks; any other one must be in a block of bash.
        seen = sum("tau2_lightning." in " ".join(one.words) for one in commands_of(text))
        lines = (line.partition(" # ")[0] for line in text.replace("\\\n", " ").splitlines())
        written = sum(bool(ENTRY.search(line)) and "`" not in line for line in lines)
        assert seen >= written, page


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("python -m tau2_lightning.train gconfig.n_sample=4", "gconfig.n_sample"),
        ("python -m tau2_lightning.train experiment=quick \\\n    gconfig.n_samples=four", "gconfig.n_samples"),
        ("python -m tau2_lightning.train --help rollout.retry", "rollout.retry"),
        ("python -m tau2_lightning.train --dry-run", "--dry-run"),
        ("PYTHONPATH=. python -m tau2_lightning.train --multirun seeds=1,2", "seeds"),
        ("torchrun --nproc-per-node 2 -m tau2_lightning.train allocation=vllm:d1", "allocation"),
        ("python -m tau2_lightning.sft min_rewards=1", "min_rewards"),
        ("python -m tau2_lightning.export outputs/E/T dtypes=float32", "dtypes"),
        ("python -m tau2_lightning.reports RUN", "tau2_lightning.reports"),
        ("python benchmarks/no_such.py", "no_such"),
        ("make trian", "trian"),
        ("pytest -m quick tests/no_such", "quick"),
        ("pip install -e '.[gpus]'", "gpus"),
        ("rollout.no_key=1", "rollout.no_key"),
        ("trian domain=telecom", "no check knows"),
    ],
)
def test_a_wrong_command_is_noticed(text: str, error: str) -> None:
    (shown,) = commands_of(f"```bash\n{text}   # a comment\n```\n")
    with pytest.raises((ConfigError, Wrong), match=re.escape(error)):
        check(shown.words)


@pytest.mark.parametrize("text", ["python -m tau2_lightning.report", "python -m tau2_lightning.evaluation.report A"])
def test_a_missing_argument_is_noticed(text: str) -> None:
    with pytest.raises(SystemExit):
        check(text.split())


@pytest.mark.parametrize("shown", PLANS, ids=str)
def test_a_documented_plan_is_printed(
    shown: Shown, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a folder that describes Qwen3-8B in the place of a model: only the machine may keep it from starting."""
    # A product of that width in bfloat16 takes a CPU that computes it in software a minute.
    monkeypatch.setattr(plan_time, "measured", lambda *_: plan_time.Rates("a test", 1e12, 1e10))
    at = next(place for place, word in enumerate(shown.words) if word == "tau2_lightning.train")
    model = described(tmp_path, "qwen3-30b-a3b" if any("30B-A3B" in word for word in shown.words) else "qwen3-8b")
    words = [f"actor.path={model}" if word.startswith("actor.path=") else word for word in shown.words[at + 1 :]]
    assert train.main([*words, f"output_dir={tmp_path}", f"cache_dir={tmp_path}"]) in (0, 2)
    out = capsys.readouterr().out
    kept = {line.split("would not start here: ")[1].split("=")[0] for line in out.splitlines() if "would not" in line}
    assert kept <= MACHINE, out
    assert ("validation: " if "mode=validate" in out else "training: ") in out and "scheduler: " in out
