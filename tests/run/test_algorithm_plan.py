"""``mode=plan algorithm=NAME`` for every file of conf/algorithm, and settings on the command line."""

from __future__ import annotations

import pytest

from tau2_lightning import train
from tau2_lightning.algorithm import AdvNorm
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.conf_files import config_dir

NAMES = sorted(path.stem for path in (config_dir() / "algorithm").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_an_algorithm_would_start(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["mode=plan", f"algorithm={name}"]) == 0, capsys.readouterr().out
    assert "would not start" not in capsys.readouterr().out


def test_the_list_of_recipes_names_every_file() -> None:
    page = (config_dir().parent / "docs" / "algorithms.md").read_text()
    assert not [name for name in NAMES if f"`{name}`" not in page]


def test_areals_words_of_a_normalisation_are_taken() -> None:
    words = ["algorithm.adv_norm.mean_level=batch", "algorithm.adv_norm.std_level=batch", "algorithm.unbiased=false"]
    made = instantiate_algorithm(load_config(words, check=False))
    assert made.adv_norm == AdvNorm(mean_level="batch", std_level="batch") and not made.unbiased
    off = instantiate_algorithm(load_config(["algorithm=reinforce_pp", "algorithm.adv_norm=null"], check=False))
    assert not off.adv_norm.active and not off.finishes_late


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "algorithm.adv_norm.mean_level=row",
            "adv_norm.mean_level='row': no such choice. Allowed: group, batch",
        ),
        ("+algorithm.adv_norm.group_size=8", "algorithm.adv_norm takes mean_level, std_level, unbiased and eps"),
        ("algorithm.rejection=mean_k4", "here: algorithm.rejection='mean_k4': no such choice. Allowed: none, token"),
        ("algorithm.behav_imp_weight_min=9", "algorithm.behav_imp_weight_min must lie in"),
        (
            "algorithm.mask_truncated=yes",
            "here: algorithm.mask_truncated='yes': no such choice. Allowed: none, turn",
        ),
        ("algorithm.std_of=both", "here: algorithm.std_of='both': no such choice. Allowed: centred, rewards"),
        (
            "algorithm.adv_norm.eps=0",
            "here: algorithm.adv_norm.eps=0: must be a number above 0. See --help",
        ),
        ("algorithm.turn_discount=2", "here: algorithm.turn_discount=2: is outside [0, 1]"),
        ("algorithm.rejection_lower=9", "here: algorithm.rejection_lower=9: algorithm.rejection_lower must be below"),
    ],
)
def test_a_wrong_value_is_one_error_that_names_the_key(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["mode=plan", word]) != 0
    output = capsys.readouterr()
    assert said in output.out + output.err
