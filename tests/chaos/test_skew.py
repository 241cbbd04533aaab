"""F29: the package is replaced under a running server. Old and new processes never talk past each other."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_processes import fronts, workers
from versions_under_load import add, ask, eventually

import penstock

Factory = Callable[..., Any]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, from which the servers of a test run."""
    copy = tmp_path / "site" / "penstock"
    shutil.copytree(Path(penstock.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(copy.parent))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return copy


def raise_version(file: Path) -> None:
    text = file.read_text()
    changed = re.sub(r"^VERSION = (\d+)", lambda found: f"VERSION = {int(found[1]) + 1}", text, flags=re.M)
    assert changed != text
    file.write_text(changed)


def test_new_processes_of_another_protocol_are_refused_and_the_old_ones_serve_on(
    server: Factory, tmp_path: Path, package: Path
) -> None:
    add(tmp_path / "m", 1)
    running = server({"m": {"path": str(tmp_path / "m"), "workers": 2, "batch": False}}, fronts=2)
    eventually(lambda: len(workers(running.pid)) == 2)
    (front,) = fronts(running.pid)
    raise_version(package / "runtime" / "workers" / "frame.py")
    raise_version(package / "runtime" / "fronts" / "wire.py")
    assert running.log is not None
    log = running.log
    old = sorted(workers(running.pid))
    os.kill(old[0], signal.SIGKILL)
    eventually(lambda: "speaks version 1 of the worker protocol, this one 2" in log.read_text())
    os.kill(front, signal.SIGKILL)
    eventually(lambda: "speaks version 1 of the front protocol, this process 2" in log.read_text())
    assert "restart it" in log.read_text()
    for _ in range(20):
        assert ask(running, "m") == ("1", 1, old[1])
    for file in ("workers/frame.py", "fronts/wire.py"):  # put back: replaced ones are taken again
        path = package / "runtime" / file
        path.write_text(path.read_text().replace("VERSION = 2", "VERSION = 1"))
    eventually(lambda: len({*workers(running.pid)} - {old[0]}) == 2 and len(fronts(running.pid)) == 1)
    assert ask(running, "m")[:2] == ("1", 1)
