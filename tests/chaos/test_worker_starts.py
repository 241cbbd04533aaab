"""F35: workers start clean and without a deadlock, whatever threads, locks and files their parent has."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from penstock.core.servable import LoadContext
from penstock.runtime.workers import Batch, BatchResult
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.process import WorkerProcess

MODEL = """
import json, os, signal, threading
import numpy as np
import penstock


class Looks:
    inputs, outputs = {"x": "f8[n]"}, {"seen": "str[n]"}

    def predict(self, x):
        seen = {
            "threads": threading.active_count(),
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            "files": [],
            "secret": os.environ.get("PENSTOCK_API_KEY"),
        }
        for number in sorted(map(int, os.listdir("/proc/self/fd"))):
            try:
                seen["files"].append(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                pass
        return {"seen": np.array([json.dumps(seen)] * len(x), dtype=object)}
"""


def spec(folder: Path) -> LoadSpec:
    file = folder / "looks.py"
    file.write_text(MODEL)
    return LoadSpec("python", f"{file}:Looks", LoadContext("looks", 1))


async def seen_by(worker: WorkerProcess) -> dict[str, object]:
    future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
    worker.run(Batch([{"x": np.array([1.0])}], 1, True), future.set_result)  # type: ignore[arg-type]  # never an error
    return dict(json.loads((await future).outputs["seen"][0]))


class Noise:
    """Threads that hold locks which a forked child would find locked for ever, nearly all of the time."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=work) for work in (self._log, self._allocate, self._open, self._hold)]
        for thread in self._threads:
            thread.start()

    def _log(self) -> None:
        log = logging.getLogger("noise")
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: SIM115  # as long as the process
        while not self._stop.is_set():
            log.info("x" * 1000)

    def _allocate(self) -> None:
        while not self._stop.is_set():
            [np.empty(size) for size in range(1000, 200_000, 10_000)]

    def _open(self) -> None:
        while not self._stop.is_set():
            with open("/proc/self/status") as inherited_by_nobody:
                inherited_by_nobody.read()

    def _hold(self) -> None:
        with self._lock:
            self._stop.wait()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def noise() -> Iterator[Noise]:
    made = Noise()
    yield made
    made.end()


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(12, id="short"),
        pytest.param(200, id="200", marks=[pytest.mark.chaos, pytest.mark.timeout(600)]),
    ],
)
async def test_workers_start_beside_threads_that_hold_locks(
    noise: Noise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEY", "a secret of the server's")
    import grpc.aio  # its threads and handlers for forks are those of a whole server

    server = grpc.aio.server()
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    threads = threading.active_count()
    inheritable = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inheritable, True)  # as a careless library might leave one
    wished = spec(tmp_path)
    try:
        for _ in range(count // 4):
            began = time.monotonic()
            workers = await asyncio.gather(*(WorkerProcess.start(wished, load_timeout_s=60.0) for _ in range(4)))
            try:
                for worker in workers:
                    seen = await asyncio.wait_for(seen_by(worker), 30.0)
                    assert seen["secret"] is None
                    assert seen["blocked"] == []
                    assert seen["threads"] == 2  # its own and the pulse
                    files = [str(file) for file in seen["files"]]  # type: ignore[attr-defined]  # a list
                    assert files.count("/dev/null") == 1  # its standard input, not what lay open here
                    assert len([file for file in files if file.startswith("socket:")]) == 1
                    assert len(files) <= 8, files  # with the pipes, the pulse, the areas and the folder it lists
            finally:
                await asyncio.gather(*(worker.close(5.0) for worker in workers))
            assert time.monotonic() - began < 60.0
        assert threading.active_count() == threads
    finally:
        os.close(inheritable)
        await server.stop(0)
