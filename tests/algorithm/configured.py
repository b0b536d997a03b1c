"""The algorithms of ``conf/algorithm``, as their files configure them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from tau2_lightning.algorithm import PolicyGradient

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))


@cache
def configured(name: str) -> PolicyGradient:
    """Return the algorithm that ``algorithm=NAME`` makes, with the defaults of the other sections."""
    other = ["+econfig.turn_discount=1.0", "+econfig.invalid_format_penalty=0.0", "+gconfig.max_new_tokens=8192"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = instantiate(compose(overrides=[f"+algorithm={name}", *other]).algorithm)
    assert isinstance(made, PolicyGradient)
    return made
