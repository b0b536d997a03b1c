"""No dead options: every key of the schema is read in the package, or handed on by a reference in conf/."""

import ast
import re
from pathlib import Path

import tau2_lightning
from tau2_lightning.config.keys import schema_keys
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.run.conf_files import config_dir

PACKAGE = Path(tau2_lightning.__file__).parent


def attributes_read() -> set[str]:
    read: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent == PACKAGE / "config":  # the schema itself, and what prints it
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    return read


def referred_to() -> set[str]:
    """Keys that an entry of ``callbacks`` or ``logger`` takes as an argument: ``style: ${trainer.progress}``."""
    files = [path for group in ("callbacks", "logger") for path in (config_dir() / group).glob("*.yaml")]
    return {key for path in files for key in re.findall(r"\$\{([\w.]+)\}", path.read_text())}


def test_every_key_is_read():
    read, referred = attributes_read(), referred_to()
    keys = [key.name for key in schema_keys(RunConfig) if key.section is None]
    unread = [key for key in keys if key.rpartition(".")[2] not in read and key not in referred]
    assert not unread


def test_the_check_can_fail():
    assert "a_key_nobody_reads" not in attributes_read()
