"""A real PostgreSQL of the test run's own, on a socket in a temporary folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    if _INSTALLED:
        return _INSTALLED[0].parent
    return Path(found).parent if found else None


def _run(*command: str) -> None:
    # PostgreSQL refuses to run as root.
    prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[tuple[Path, Path]]:
    binaries = _binaries()
    if binaries is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="penstock-pg-"))  # short: a socket's path has 107 bytes at most
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    data = str(folder / "data")
    try:
        _run(str(binaries / "initdb"), "-D", data, "-U", "penstock", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=60"
        _run(str(binaries / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield binaries, folder
        finally:
            with contextlib.suppress(AssertionError):
                _run(str(binaries / "pg_ctl"), "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_NUMBERS = itertools.count()


@pytest.fixture
def postgres(postgres_folder: tuple[Path, Path]) -> Callable[[], str]:
    """Makes an empty database and gives its URL."""
    binaries, folder = postgres_folder

    def make() -> str:
        name = f"test{next(_NUMBERS)}"
        _run(str(binaries / "createdb"), "-h", str(folder), "-U", "penstock", name)
        return f"postgresql://penstock@/{name}?host={folder}"

    return make
