"""Servers that are short of something: files, processes, memory, shared memory. Needs root for most of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import running_server


@pytest.fixture
def confine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Has servers of this test started by a shell that first runs some lines, such as `ulimit -n 64`."""

    def confine(*lines: str, mounts: bool = False) -> None:
        script = tmp_path / "confined-python"
        inside = ['[ -n "$CONFINED" ] || CONFINED=1 exec unshare --mount --propagation private "$0" "$@"']
        script.write_text("\n".join(["#!/bin/sh", "set -e", *(inside if mounts else []), *lines, PYTHON, ""]))
        script.chmod(0o755)
        monkeypatch.setattr(running_server, "PYTHON", str(script))

    return confine


PYTHON = f'exec {sys.executable} "$@"'


def need_mounts() -> None:
    """Skips where this process may not have a mount namespace of its own."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs to make a mount namespace, which takes root")


def limit_cpu(folder: Path, share: float) -> None:
    """Gives a control group so much of one core, a tenth of a second at a time."""
    period_us = 100_000
    quota_us = round(share * period_us)
    if (folder / "cpu.max").exists():
        (folder / "cpu.max").write_text(f"{quota_us} {period_us}")
        return
    (folder / "cpu.cfs_period_us").write_text(str(period_us))
    (folder / "cpu.cfs_quota_us").write_text(str(quota_us))


@pytest.fixture
def group() -> Iterator[Callable[[str], Path]]:
    """Makes control groups of a controller, and removes them with all that lives in them. `pids.max`, `pids.current` and
    `cgroup.procs` have the same names in both versions; for processor time there is `limit_cpu`."""
    made: list[Path] = []

    def make(controller: str) -> Path:
        top, name = Path("/sys/fs/cgroup"), f"penstock-test-{os.getpid()}-{len(made)}"
        second = (top / "cgroup.controllers").exists()
        if second and controller not in ("cpu", "pids"):
            pytest.skip(f"needs control groups of version 1 for {controller}; here they are of version 2")
        folder = top / name if second else top / controller / name
        try:
            if second and controller not in (top / "cgroup.subtree_control").read_text().split():
                (top / "cgroup.subtree_control").write_text(f"+{controller}")
            folder.mkdir()
        except OSError as error:
            pytest.skip(f"needs to make a control group of {controller}, version {1 + second}: {error.strerror}")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        end = time.monotonic() + 10
        while folder.exists() and time.monotonic() < end:
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), 9)
            with contextlib.suppress(OSError):
                folder.rmdir()
            time.sleep(0.05)
