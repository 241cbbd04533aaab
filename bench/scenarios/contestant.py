"""One server that is put under fire: started, measured, ended, started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness.clients import ask
from harness.servers import Family, Place, Running, Start, family, running
from harness.wire import v2_json_call
from harness.workload import Workload

from penstock import ledger
from scenarios import MODEL, Server
from scenarios.watch import command_line, kill_all, left_of, shared_memory

CALL = v2_json_call(MODEL)
INPUTS = np.random.default_rng(0).random((8, 10), np.float32)
ANSWERS = INPUTS * 3
# So many callers in a closed loop fill two batches and two more behind them, and stay far from every queue's limit.
AT_ONCE = 32
_AGAIN_S = 8.0


class Contestant:
    """A server program. Use as a context manager: whatever it started is gone afterwards."""

    def __init__(self, name: str, version: str, python: Path, server: Server, work_s: float) -> None:
        self.name, self.version, self.server = name, version, server
        self.says = ""  # its own name and version, as it tells them
        self.capacity = 0.0  # right answers a second
        self._python, self._work_s = python, work_s
        self._stack = contextlib.ExitStack()
        self._running: Running | None = None
        self._known: Family = {}
        self._memory: set[Path] = set()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def running(self) -> Running:
        assert self._running is not None, "start() comes first"
        return self._running

    @property
    def target(self) -> ledger.Target:
        place = self.running.place
        return ledger.Target(
            f"http://127.0.0.1:{place.http_port}",
            MODEL,
            grpc=f"127.0.0.1:{place.grpc_port}",
            metrics_url=self.server.metrics_url(place),
        )

    def start(self) -> None:
        """Starts it, if it does not run. Raises ServerFailed when it does not come up."""
        if self._running is not None:
            return
        workload = Workload(MODEL, Path(), INPUTS, ANSWERS)
        self._running = self._stack.enter_context(running(self._python, workload, {"json": CALL}, self._start))
        self.says = self.says or self._own_version()

    def measure(self, plan: ledger.Plan, seconds: float) -> None:
        """Finds out its capacity, once. Raises what `ledger.capacity` raises.

        The better of two measurements counts: connections are spread by chance over workers that accept themselves.
        """
        if not self.capacity:
            self.capacity = max(
                asyncio.run(ledger.capacity(self.target, plan, ledger_inputs(), seconds / 2, AT_ONCE)) for _ in range(2)
            )

    def remember(self) -> None:
        """Notes which processes and which shared memory it has, to find them when it is gone."""
        self._known |= family(self.running.mark)
        self._memory |= shared_memory(self._known)

    def left(self) -> Family:
        """All of its processes that live."""
        return left_of(self._known, self.running.mark)

    def memory_left(self) -> list[Path]:
        """Named shared memory of it that still exists."""
        return sorted(path for path in self._memory if path.exists())

    def workers(self) -> list[int]:
        """Its processes that run the model."""
        return sorted(pid for pid in family(self.running.mark) if self.server.is_worker(command_line(pid)))

    def answers(self, patience_s: float = _AGAIN_S) -> bool:
        """Whether it gives 8 right answers in a row, within `patience_s`."""
        give_up, right = time.monotonic() + patience_s, 0
        message = [CALL.encode(INPUTS[row : row + 1]) for row in range(len(INPUTS))]
        while right < len(INPUTS) and time.monotonic() < give_up and self.running.process.poll() is None:
            try:
                answer = ask(CALL, self.running.place.http_port, message[right], timeout_s=2.0)
                right = right + 1 if np.allclose(answer, ANSWERS[right : right + 1], rtol=1e-3) else 0
            except Exception:  # whatever it was, this was no right answer
                right = 0
                time.sleep(0.05)
        return right == len(INPUTS)

    def end(self, *, at_once: bool = False) -> None:
        """Ends it with all it started; `at_once` without asking. Raises ServerFailed when something stays."""
        if self._running is None:
            return
        self.remember()
        if at_once:
            kill_all(self.left())
        mark = self._running.mark
        self._running = None
        try:
            self._stack.close()
        finally:
            kill_all(left_of(self._known, mark))
            for path in self.memory_left():  # on this machine others would have to live with it
                path.unlink(missing_ok=True)
            self._known, self._memory = {}, set()

    def _start(self, place: Place) -> Start:
        start = self.server.start(place)
        return replace(start, env={**start.env, "WORK_S": str(self._work_s)})

    def _own_version(self) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.running.place.http_port}/v2", timeout=5.0) as answer:
                said = json.loads(answer.read())
            return f"{said.get('name', '')} {said.get('version', '')}".strip()
        except (OSError, ValueError):
            return ""


def ledger_inputs() -> Sequence[dict[str, np.ndarray]]:
    """The payloads of every run: one row each."""
    return [{"x": INPUTS[row : row + 1]} for row in range(len(INPUTS))]
