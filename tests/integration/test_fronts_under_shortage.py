"""Extra fronts while the machine has no thread left, and while they do not come up. A real server, in this process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from waiting import becomes

from penstock.core.errors import Internal
from penstock.runtime.fronts.supervisor import Fronts
from penstock.runtime.options import ModelOptions, ServerOptions
from penstock.runtime.server import ServerStatus, run

# Read by every Python process at its start.
HANGING_FRONTS = """
import sys, time
if "penstock.runtime.fronts.main" in sys.orig_argv:
    time.sleep(60)
"""


def fronts() -> list[int]:
    """Front processes of this process that run."""
    found = []
    for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"penstock.runtime.fronts.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


@contextlib.asynccontextmanager
async def serving(stop: asyncio.Event) -> AsyncIterator[asyncio.Event]:
    """Set when the server serves."""
    ready = asyncio.Event()

    def on_ready(_: ServerStatus) -> None:
        ready.set()

    options = ServerOptions(http_port=0, grpc=False, fronts=2, grace_s=20.0)
    running = asyncio.create_task(run(options, [ModelOptions(name="e", path="echo")], on_ready=on_ready, stop=stop))
    try:
        yield ready
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await running


async def test_front_that_dies_while_there_is_no_thread_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with serving(asyncio.Event()) as ready:
        await asyncio.wait_for(ready.wait(), 20)
        first = fronts()
        assert len(first) == 1
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            # The loop's own pool would hide the shortage with a thread that it has already.
            asyncio.get_running_loop().set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
            os.kill(first[0], signal.SIGKILL)
            await becomes(lambda: first[0] not in fronts())
            await asyncio.sleep(0.3)  # the keeper has met the shortage
        await becomes(lambda: len(fronts()) == 1 and fronts() != first)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError(), OSError(11, "no processes")])
async def test_first_start_fails_whatever_keeps_a_front_from_starting(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "Popen", launch)
    with pytest.raises(Internal, match="cannot be started"):
        async with asyncio.timeout(5):
            await Fronts(None, ServerOptions(fronts=2), (), 1, None).start()  # type: ignore[arg-type]  # no engine: it fails before


async def test_stop_does_not_wait_for_fronts_that_do_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGING_FRONTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with serving(asyncio.Event()) as ready:
        await becomes(fronts)
        assert not ready.is_set()
    assert fronts() == []
