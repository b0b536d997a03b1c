"""``rollout.keep_rollouts``: an amount with its unit."""

from __future__ import annotations

import pytest

from tau2_lightning.config.kept import KeptBound
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.compose import load_config


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("all", KeptBound()), ("none", KeptBound(steps=0)),
        ("500steps", KeptBound(steps=500)), ("1 step", KeptBound(steps=1)),
        ("20GiB", KeptBound(size=20 * 2**30)), ("800mib", KeptBound(size=800 * 2**20)),
    ],
)  # fmt: skip
def test_an_amount(text: str, bound: KeptBound) -> None:
    assert KeptBound.parse(text) == bound
    assert bound.keeps == (text != "none")


@pytest.mark.parametrize("text", ["20", "20GB", "0steps", "-1GiB", "some", "", "1.5GiB"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="with its unit"):
        KeptBound.parse(text)


def test_a_bad_amount_is_one_clear_error() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["domain=mock", "rollout.keep_rollouts=lots"])
    (one,) = [violation for violation in caught.value.violations if violation.key == "rollout.keep_rollouts"]
    assert one.value == "lots" and "20GiB" in one.remedy
