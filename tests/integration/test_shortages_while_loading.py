"""Loads for which the machine lacks something for a moment, with real workers that end before they can begin."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.core.errors import LoadError
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions, ServerOptions
from penstock.runtime.repository import ModelRepository
from penstock.runtime.sources.local import LocalSource
from penstock.runtime.workers.shortage import ended_while_loading, is_shortage
from penstock.telemetry.metrics import Metrics

CODE = """
import penstock

@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"})
def one(x):
    return {"y": x}
"""
# Read by every Python process at its start: it stands in for a machine that has no room for one more worker.
ENDS_WORKERS = """
import os, sys
if "penstock-worker" in " ".join(sys.orig_argv) and os.path.exists({flag!r}):
    with open({tries!r}, "a") as tries:
        tries.write("x")
    os._exit(11)
"""


class Machine:
    """Whether workers can start here now, and how often one could not."""

    def __init__(self, folder: Path) -> None:
        self._flag, self._tries = folder / "short", folder / "tries"
        (folder / "sitecustomize.py").write_text(ENDS_WORKERS.format(flag=str(self._flag), tries=str(self._tries)))

    def short(self, is_short: bool) -> None:
        if is_short:
            self._flag.touch()
        else:
            self._flag.unlink()

    @property
    def tries(self) -> int:
        return len(self._tries.read_text()) if self._tries.exists() else 0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return Machine(folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    add_version(tmp_path / "m", 1)
    return tmp_path / "m"


def add_version(model: Path, number: int) -> None:
    (model / str(number)).mkdir(parents=True)
    (model / str(number) / "model.py").write_text(CODE)


@contextlib.asynccontextmanager
async def repository_of(model: Path, **options: object) -> AsyncIterator[tuple[ModelRepository, Manager]]:
    manager = Manager(Metrics(), 2)
    server = ServerOptions(**options)  # type: ignore[arg-type]  # as the tests write them
    source = LocalSource([ModelOptions(name="m", path=str(model), workers=1, warm_up=False)])
    repository = ModelRepository([source], manager, server)
    try:
        yield repository, manager
    finally:
        await repository.close()
        await manager.close(5)


async def test_start_under_a_shortage_fails_with_the_reason(machine: Machine, model: Path) -> None:
    machine.short(True)
    async with repository_of(model) as (repository, _):
        with pytest.raises(LoadError, match="before it could load the model"):
            await asyncio.wait_for(repository.start(), 20)
    assert machine.tries == 1


async def test_load_call_under_a_shortage_is_answered_and_the_next_one_works(machine: Machine, model: Path) -> None:
    async with repository_of(model, model_control="explicit") as (repository, manager):
        await repository.start()
        machine.short(True)
        with pytest.raises(LoadError, match="before it could load the model"):
            await asyncio.wait_for(repository.load("m", None, None), 20)
        assert machine.tries == 1
        machine.short(False)
        await asyncio.wait_for(repository.load("m", None, None), 20)
        assert manager.ready_versions("m") == (1,)
        await asyncio.wait_for(repository.unload("m"), 20)


async def test_what_a_shortage_kept_from_loading_is_tried_once_at_each_look(machine: Machine, model: Path) -> None:
    async with repository_of(model, model_control="poll", poll_s=0.5) as (repository, manager):
        await repository.start()
        machine.short(True)
        add_version(model, 2)
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(20):
            while machine.tries < 3:  # noqa: ASYNC110  # what is waited for lies on a disk
                await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - began >= 2 * 0.5
        machine.short(False)
        async with asyncio.timeout(20):
            while 2 not in manager.ready_versions("m"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_replacement_that_a_shortage_kept_from_loading_comes_at_a_later_look(
    machine: Machine, model: Path
) -> None:
    async with repository_of(model, model_control="poll", poll_s=0.5) as (repository, manager):
        await repository.start()
        before = manager.find("m", "1")
        machine.short(True)
        (model / "1" / "model.py").write_text(CODE + "# other\n")
        async with asyncio.timeout(20):
            while machine.tries < 2:  # noqa: ASYNC110  # what is waited for lies on a disk
                await asyncio.sleep(0.01)
        assert manager.find("m", "1") is before
        machine.short(False)
        async with asyncio.timeout(20):
            while manager.find("m", "1") is before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def test_an_error_is_a_shortage_by_what_caused_it_not_by_what_was_handled_beside_it() -> None:
    assert is_shortage(ended_while_loading("exit status 11", opened=False))
    assert not is_shortage(ended_while_loading("exit status 11", opened=True))
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("another matter")  # noqa: B904  # as code does that says nothing of a cause
    except ValueError as error:
        assert not is_shortage(error)
    try:
        try:
            raise OSError(11, "no more processes")
        except OSError as cause:
            raise LoadError("cannot start a worker process") from cause
    except LoadError as error:
        assert is_shortage(error)
