"""The watchdog: no process of a guarded command outlives its parent or its main process."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tau2_lightning.launch import remote_client, watchdog
from tests.launch.processes import SERVER, WAIT, members, until

LEAVE = SERVER.format(then="time.sleep(1); sys.exit(7)")

PARENT = """
import subprocess, sys, time
p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
print(p.pid, flush=True)
time.sleep(600)
"""


def watching(program: str, grace: float = 1.0) -> list[str]:
    return watchdog.guarded([sys.executable, "-c", program], grace)


def test_kill_9_of_the_parent_ends_the_whole_group():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *watching(WAIT)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    assert until(lambda: len(members(group)) == 3)
    parent.kill()
    parent.wait()
    assert until(lambda: not members(group))


def test_the_main_process_does_not_leave_its_children_behind():
    process = subprocess.Popen(
        watching(LEAVE), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    assert process.wait(10) == 7
    assert not members(process.pid)


def test_kill_9_of_the_main_process_ends_its_children():
    process = subprocess.Popen(watching(WAIT), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    assert until(lambda: len(members(process.pid)) == 3)
    main = next(p for p in members(process.pid) if p.ppid() == process.pid)
    main.kill()
    assert process.wait(10) == 128 + signal.SIGKILL
    assert not members(process.pid)


@pytest.mark.parametrize("script", [watchdog, remote_client], ids=lambda module: module.__name__)
def test_scripts_run_by_path_import_the_standard_library_only(script: ModuleType) -> None:
    """``python -I path`` sees neither this package nor what is installed beside it in another environment."""
    tree = ast.parse(Path(str(script.__file__)).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
