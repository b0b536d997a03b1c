"""The Hydra group ``algorithm``: each file configures one class and lists all settings with the class's defaults."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from tau2_lightning import algorithm
from tau2_lightning.algorithm import dashboard, finalise
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config
from tests.algorithm.cases import loss_and_gradients
from tests.algorithm.test_losses import ordinary_microbatch

CONF = Path(__file__).parents[2] / "conf"
FILES = {
    "base": algorithm.PolicyGradient,
    "grpo": algorithm.GRPO,
    "dapo": algorithm.DAPO,
    "dr_grpo": algorithm.DrGRPO,
    "rloo": algorithm.RLOO,
    "gspo": algorithm.GSPO,
    "cispo": algorithm.CISPO,
    "sapo": algorithm.SAPO,
    "gmpo": algorithm.GMPO,
    "reinforce_pp": algorithm.ReinforcePP,
    "reinforce_pp_baseline": algorithm.ReinforcePPBaseline,
    "clip_cov": algorithm.ClipCov,
    "kl_cov": algorithm.KLCov,
}


def test_every_file_is_known_here() -> None:
    assert {path.stem for path in (CONF / "algorithm").glob("*.yaml")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_the_defaults_of_its_class_and_every_knob(name) -> None:
    kind = FILES[name]
    econfig = ["+econfig.turn_discount=0.9", "+econfig.invalid_format_penalty=0.1", "+gconfig.max_new_tokens=8192"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        group = compose(overrides=[f"+algorithm={name}", *econfig]).algorithm
    made = instantiate(group)
    assert type(made) is kind
    assert made == kind(turn_discount=0.9, invalid_format_penalty=0.1)
    assert set(group) - {"_target_"} == {f.name for f in dataclasses.fields(kind)}


def test_an_algorithm_is_one_short_file() -> None:
    for kind in FILES.values():
        if kind is not algorithm.PolicyGradient:
            assert len(Path(inspect.getsourcefile(kind) or "").read_text().splitlines()) <= 50, kind


def test_a_users_own_algorithm_is_a_target_away() -> None:
    """It works in the command line, advantages, filter, loss and dashboard, without a change to the package."""
    target = "tests.algorithm.own_algorithm.RankAdvantages"
    words = ["algorithm=base", f"algorithm._target_={target}", "+algorithm.sharpness=0.5", "algorithm.kl_ctl=0.1"]
    made = instantiate_algorithm(load_config(words, check=False))
    assert type(made).__name__ == "RankAdvantages" and made.needs_reference
    credit = made.credit([[0.0]] * 3, [0, 1, 2], [3.0, 0.0, 1.0], [0, 0, 0], [1, 1, 1])
    assert credit.advantages.tolist() == [0.5, -0.5, 0.0]
    assert made.teaches([3.0, 0.0, 1.0], [1, 1, 1]) and not made.teaches([1.0, 1.0], [1, 2])
    mb = ordinary_microbatch(spread=1.5)
    loss, grad, _, metrics = loss_and_gradients(made, mb)
    far = (mb["logprobs"] - mb["behaviour_logprobs"]).abs() > 1
    assert torch.isfinite(loss) and grad[mb["loss_mask"]].abs().min() > 0
    assert metrics["far_tokens"] == (far & mb["loss_mask"]).sum() > 0
    assert "far_tokens" in dashboard(finalise({name: float(value) for name, value in metrics.items()}))


def test_what_is_no_algorithm_is_refused_by_name() -> None:
    for target in ("collections.Counter", "tests.algorithm.own_algorithm.Misspelt"):
        with pytest.raises(ConfigError, match="algorithm"):
            instantiate_algorithm(load_config(["algorithm=base", f"algorithm._target_={target}"], check=False))
