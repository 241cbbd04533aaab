"""Load calls and lookups of a manager and a repository with real workers, without listeners."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from waiting import becomes

from penstock.core.errors import InvalidInput, LoadError, NotFound, Unsupported
from penstock.runtime.engine import Engine
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions, ServerOptions
from penstock.runtime.repository import ModelRepository
from penstock.runtime.sources import Source
from penstock.runtime.sources.local import LocalSource
from penstock.runtime.sources.memory import MemorySource
from penstock.runtime.tracing import Tracing
from penstock.telemetry.metrics import Metrics

CODE = b"""
import penstock

@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"})
def model(x):
    return {"y": x}
"""


@contextlib.asynccontextmanager
async def explicit(source: Source, accept_code: bool = True) -> AsyncIterator[tuple[ModelRepository, Manager]]:
    manager = Manager(Metrics(), 2)
    options = ServerOptions(model_control="explicit", load_models=("*",), accept_code=accept_code)
    repository = ModelRepository([source], manager, options)
    manager.door = Engine(manager, repository, Tracing(), Metrics(), lambda update: {})
    await repository.start()
    manager.started = True
    try:
        yield repository, manager
    finally:
        await repository.close()
        await manager.close(5)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "own.py").write_bytes(CODE)
    return MemorySource([ModelOptions(name="m", path=f"{tmp_path}/own.py:model")])


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files of calls are written."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "calls"))
    (tmp_path / "calls").mkdir()
    return tmp_path / "calls"


def left(temporary: Path) -> list[Path]:
    return sorted(temporary.iterdir())


def children() -> int:
    return len(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize(
    "config",
    [
        {"instance_group": [{"count": 0}]},
        {"instance_group": [{"count": 100_000}]},
        {"dynamic_batching": {"max_queue_delay_microseconds": 10**12}},
    ],
)
async def test_config_of_a_call_keeps_the_ranges_of_the_options(source: Source, config: Mapping[str, object]) -> None:
    before = children()
    async with explicit(source) as (repository, manager):
        with pytest.raises(InvalidInput, match="allowed is"):
            await repository.load("m", config, None)
        assert manager.names() == ["m"]
    assert children() == before


@pytest.mark.parametrize("files", [{"a": b"", "a/b": b""}, {"a" * 300: b""}])
async def test_files_that_cannot_be_written_leave_what_was_loaded_before(
    source: Source, temporary: Path, files: Mapping[str, bytes]
) -> None:
    async with explicit(source) as (repository, manager):
        await repository.load("m", {"backend": "python"}, {"1/model.py": CODE})
        path = manager.find("m", "").path
        with pytest.raises(InvalidInput, match="cannot be written"):
            await repository.load("m", {"backend": "python"}, files)
        await repository.load("m", None, None)  # the model's own files again
        assert manager.find("m", "").path != path
        assert left(temporary) == []


async def test_load_whose_caller_leaves_is_brought_to_its_end(source: Source, temporary: Path) -> None:
    async with explicit(source) as (repository, manager):
        await repository.load("m", {"backend": "python"}, {"1/model.py": CODE})
        first = manager.find("m", "").path
        call = asyncio.create_task(repository.load("m", {"backend": "python"}, {"1/model.py": CODE}))
        await becomes(lambda: len(left(temporary)) == 2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await becomes(lambda: not first.exists())
        assert [manager.find("m", "").path.parent] == left(temporary)
    assert left(temporary) == []


async def test_trust_in_a_models_own_files_is_none_in_those_of_a_call(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LinearRegression

    pickled = pickle.dumps(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    (tmp_path / "own.pkl").write_bytes(pickled)
    source = MemorySource([ModelOptions(name="m", path=str(tmp_path / "own.pkl"), trust=True)])
    async with explicit(source) as (repository, manager):
        with pytest.raises(LoadError, match="trust"):
            await repository.load("m", {"backend": "sklearn"}, {"1/model.pkl": pickled})
        assert manager.names() == ["m"]


@pytest.mark.parametrize("version", ["01", "2", "9" * 5000, "stable"])
async def test_what_is_no_version_is_not_found(source: Source, version: str) -> None:
    async with explicit(source) as (_, manager):
        with pytest.raises(NotFound):
            manager.find("m", version)


async def test_load_that_cannot_replace_what_serves_says_so(source: Source) -> None:
    async with explicit(source) as (repository, manager):
        path = manager.find("m", "").path
        with pytest.raises(LoadError, match="broken"):
            await repository.load("m", {"backend": "python"}, {"1/model.py": b"raise RuntimeError('broken')"})
        assert manager.find("m", "").path == path
        await repository.load("m", {"backend": "python"}, {"1/model.py": CODE})
        assert [status.reason for status in manager.index()] == [""]


async def test_code_in_a_load_call_is_refused_unless_accept_code_allows_it(source: Source) -> None:
    files = {"1/model.py": CODE}
    async with explicit(source, accept_code=False) as (repository, manager):
        with pytest.raises(Unsupported, match="accept-code"):
            await repository.load("fresh", {"backend": "python"}, files)
        assert manager.names() == ["m"]
    async with explicit(source) as (repository, manager):
        await repository.load("fresh", {"backend": "python"}, files)
        assert manager.names() == ["fresh", "m"]


@pytest.mark.parametrize(
    "graph",
    [
        "kind: Graph\nsequence:\n  - url: http://169.254.169.254/latest\n",
        "kind: Graph\nsequence:\n  - ensemble:\n      - model: m\n      - endpoint: fraud\n",
        '{"apiVersion": "serving.kserve.io/v1alpha1", "kind": "InferenceGraph", "spec": {"nodes": {"root": '
        '{"routerType": "Sequence", "steps": [{"serviceUrl": "http://127.0.0.1:1/admin"}]}}}}',
    ],
)
async def test_a_load_call_brings_no_graph_that_asks_elsewhere(source: Source, graph: str) -> None:
    async with explicit(source, accept_code=False) as (repository, manager):
        with pytest.raises(Unsupported, match=r"ask (http://1|endpoint fraud).*--accept-code"):
            await repository.load("fresh", {"max_batch_size": 0}, {"1/graph.yaml": graph.encode()})
        assert manager.names() == ["m"]


async def test_a_load_call_names_no_file_that_the_server_would_write(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_bytes(CODE)
    graph = b"kind: Graph\ninputs: {x: 'f8[n]'}\noutputs: {y: 'f8[n]'}\nrouter:\n  - model: m\n"
    (tmp_path / "own.yaml").write_bytes(graph)
    own = str(tmp_path / "own.json")
    source = MemorySource(
        [
            ModelOptions(name="m", path=f"{tmp_path}/own.py:model"),
            ModelOptions(name="graph", path=f"{tmp_path}/own.yaml", options={"state": own}),
        ]
    )
    theirs = {"parameters": {"state": {"string_value": str(tmp_path / "theirs.json")}}}
    async with explicit(source, accept_code=False) as (repository, manager):
        for name, files in (("graph", None), ("fresh", {"1/graph.yaml": graph})):
            with pytest.raises(Unsupported, match="`state`"):
                await repository.load(name, theirs, files)
        await repository.load("graph", {"max_batch_size": 0}, None)  # its owner's own file stays
        await repository.load("fresh", {"max_batch_size": 0}, {"1/graph.yaml": graph})  # it asks only models here
        assert manager.names() == ["fresh", "graph", "m"]


async def test_model_that_has_never_answered_does_not_take_the_others_out_of_rotation(source: Source) -> None:
    async with explicit(source) as (repository, manager):
        with pytest.raises(LoadError):
            await repository.load("fresh", {"backend": "python"}, {"1/model.py": b"1 / 0"})
        assert manager.all_ready() and manager.known() == ["m"]


async def test_slow_load_of_one_model_does_not_hold_up_another(source: Source) -> None:
    async with explicit(source) as (repository, manager):
        code = b"import time; time.sleep(20)"
        slow = asyncio.create_task(repository.load("slow", {"backend": "python"}, {"1/model.py": code}))
        await asyncio.wait_for(repository.load("quick", {"backend": "python"}, {"1/model.py": CODE}), 10)
        assert not slow.done() and manager.names() == ["m", "quick"]
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)


async def test_failure_of_a_version_that_is_no_longer_wanted_does_not_fail_the_load_of_the_next(tmp_path: Path) -> None:
    versions = tmp_path / "versions"
    (versions / "1").mkdir(parents=True)
    (versions / "1" / "model.py").write_bytes(CODE)
    async with explicit(LocalSource([ModelOptions(name="m", path=str(versions), warm_up=False)])) as (
        repository,
        manager,
    ):
        (versions / "1" / "model.py").write_text("raise RuntimeError('broken')\n")
        with pytest.raises(LoadError, match="not replaced"):
            await repository.load("m", None, None)
        (versions / "2").mkdir()
        (versions / "2" / "model.py").write_bytes(CODE)
        await repository.load("m", {"max_batch_size": 3}, None)
        assert manager.find("m", "").number == 2
        assert manager.find("m", "").options.max_batch_size == 3


async def test_load_fails_while_an_older_version_stands_in_for_a_broken_wanted_one(tmp_path: Path) -> None:
    versions = tmp_path / "versions"
    (versions / "1").mkdir(parents=True)
    (versions / "1" / "model.py").write_bytes(CODE)
    async with explicit(LocalSource([ModelOptions(name="m", path=str(versions), warm_up=False)])) as (
        repository,
        manager,
    ):
        (versions / "2").mkdir()
        (versions / "2" / "model.py").write_text("raise RuntimeError('broken')\n")
        with pytest.raises(LoadError, match=r"version 2: .*broken"):
            await repository.load("m", None, None)
        assert manager.find("m", "").number == 1
