"""Starts extra front processes, keeps their tables fresh, replaces those that die or hang, and drains them at the end.

Theory of operation. Each front has a keeper, which starts it, waits until its link is gone, makes sure that the process
is too, and starts over: after a moment, and after longer ones while fronts do not live long. Its figures are kept when
it goes, so that counters never fall. A front that says nothing for long, or that somebody stopped, is killed: its share
of the connections to the port would hang with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
import subprocess
import sys
import time

from penstock.core.errors import Internal
from penstock.runtime.engine import Engine
from penstock.runtime.fronts import wire
from penstock.runtime.fronts.gate import Gate
from penstock.runtime.keys import ApiKey
from penstock.runtime.options import ServerOptions
from penstock.runtime.workers import states
from penstock.runtime.workers.shortage import is_shortage

log = logging.getLogger("penstock.fronts")

_START_S = 30.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 10.0
_LONGEST_DELAY_OF_STARTED_S = 0.8  # of one that listened: its share of the work waits
_HEALTHY_S = 10.0  # after a life of so long the next delay is the first again
_END_S = 1.0  # from the end of the link to the end of the process
_END_LOOK_S = 0.01
_WATCH_S = 1.0
_SILENT_LOOKS = 30  # fronts speak four times a second; decoding the largest body keeps one from it for some seconds
_STOPPED_LOOKS = 2  # one may fall between two signals that continue the engine's process and its fronts


class Fronts:
    """The extra fronts of one server. `gates` are those that live."""

    def __init__(
        self,
        engine: Engine,
        options: ServerOptions,
        api_keys: tuple[ApiKey, ...],
        http_port: int,
        grpc_port: int | None,
    ) -> None:
        self.gates: set[Gate] = set()
        self._starting: set[Gate] = set()
        self._engine = engine
        self._setup = wire.Setup(options.host, http_port, grpc_port, dataclasses.asdict(options), api_keys)
        self._count = options.fronts - 1
        self._keepers: list[asyncio.Task[None]] = []
        self._draining: float | None = None
        self._told = asyncio.Event()  # to drain
        self._gone = wire.Figures([0] * 6, {}, 0)
        self._published = False

    @property
    def figures(self) -> list[wire.Figures]:
        """What each front has counted, and what those counted together that are gone."""
        return [*(gate.figures for gate in self.gates), self._gone]

    async def start(self) -> None:
        """Returns when every extra front listens. Raises: Internal when one cannot be started."""
        first = [asyncio.get_running_loop().create_future() for _ in range(self._count)]
        self._keepers = [asyncio.create_task(self._keep(started)) for started in first]
        await asyncio.gather(*first)

    def publish(self) -> None:
        """Sends the current table to every front, once per loop iteration however often it is called."""
        if self.gates and not self._published:
            self._published = True
            asyncio.get_running_loop().call_soon(self._publish)

    async def tell(self) -> None:
        """Returns when the engine knows what all fronts have observed."""
        if self.gates:
            await asyncio.gather(*(gate.tell() for gate in self.gates))

    async def drain(self, grace_s: float) -> None:
        """Returns when every front has finished what it held, or was cut after `grace_s`, and is gone."""
        self._draining = grace_s
        self._told.set()
        for gate in self._starting:
            if not gate.started.done():  # it holds nothing yet
                gate.close()
        for gate in self.gates:
            gate.send(wire.Drain(grace_s))
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=grace_s + _END_S)
            for keeper in late:
                keeper.cancel()
            await asyncio.gather(*self._keepers, return_exceptions=True)

    def _publish(self) -> None:
        self._published = False
        table = self._engine.table()
        for gate in self.gates:
            gate.send(table)

    async def _keep(self, started: asyncio.Future[None]) -> None:
        delay_s = _FIRST_DELAY_S
        while self._draining is None:
            began, longest_s = time.monotonic(), _LONGEST_DELAY_OF_STARTED_S
            try:
                await self._run_one(started)
            except Exception as error:  # no more processes, threads, descriptors or memory, and what nobody thought of
                message = str(error) or type(error).__name__
                if not started.done():
                    started.set_exception(Internal(f"an extra front process cannot be started: {message}"))
                    return
                if self._draining is None:
                    known = isinstance(error, (Internal, OSError)) or is_shortage(error)
                    log.error("front_failed", extra={"error": message}, exc_info=not known)
                longest_s = _LONGEST_DELAY_S
            delay_s = min(delay_s, longest_s)
            if self._draining is None:
                log.warning("front_replaced", extra={"delay_s": delay_s})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._told.wait()
            healthy = time.monotonic() - began > _HEALTHY_S + delay_s
            delay_s = _FIRST_DELAY_S if healthy else min(_LONGEST_DELAY_S, 2 * delay_s)

    async def _run_one(self, started: asyncio.Future[None]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = _launch(theirs)
            except BaseException:
                ours.close()
                raise
        _, gate = await asyncio.get_running_loop().create_unix_connection(lambda: Gate(self._engine), sock=ours)
        try:
            if self._told.is_set():
                return
            self._starting.add(gate)
            gate.send(self._setup)
            gate.send(self._engine.table())
            ready, _ = await asyncio.wait(
                {gate.started, gate.closed}, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED
            )
            if gate.started not in ready:
                raise Internal("it did not start; its standard error says why")
            self._starting.discard(gate)
            self.gates.add(gate)
            gate.send(self._engine.table())
            if self._draining is not None:  # it was starting when the others were told
                gate.send(wire.Drain(self._draining))
            if not started.done():
                started.set_result(None)
            await self._watched(gate, process)
        finally:
            if gate in self.gates:
                self.gates.discard(gate)
                self._gone = _sum(self._gone, gate.figures)
            self._starting.discard(gate)
            gate.close()
            await _end(process, _END_S)

    async def _watched(self, gate: Gate, process: subprocess.Popen[bytes]) -> None:
        """Returns when the front is gone, or was killed because it hangs."""
        silent = stopped = 0  # looks in a row; counted so, time in which this process was stopped itself is nobody's
        last = gate.figures
        while not gate.closed.done():
            await asyncio.wait({gate.closed}, timeout=_WATCH_S)
            silent, last = silent + 1 if gate.figures is last else 0, gate.figures
            stopped = stopped + 1 if silent and states.is_stopped(process.pid) else 0
            if stopped >= _STOPPED_LOOKS or silent > _SILENT_LOOKS:
                fields = {"pid": process.pid, "silence_s": silent * _WATCH_S, "stopped": stopped > 0}
                log.error("front_stuck", extra={**fields, "threads": states.of_threads(process.pid)})
                process.kill()
                return


def _launch(sock: socket.socket) -> subprocess.Popen[bytes]:
    # Not by asyncio: its fork would run grpc's handlers for forks, which may block. This one is a vfork and exec.
    return subprocess.Popen(
        [sys.executable, "-m", "penstock.runtime.fronts.main", str(sock.fileno()), str(wire.VERSION)],
        pass_fds=[sock.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # ^C in a terminal reaches the engine's process only, which tells its fronts
    )


def _sum(one: wire.Figures, other: wire.Figures) -> wire.Figures:
    """Both counted together; what was open or under way at `other` is not any more."""
    refused = dict(one.refused)
    for reason, count in other.refused.items():
        refused[reason] = refused.get(reason, 0) + count
    return wire.Figures(
        [mine + its for mine, its in zip(one.responses, other.responses, strict=True)],
        refused,
        one.open_connections,
        spans=(one.spans[0] + other.spans[0], one.spans[1] + other.spans[1], one.spans[2] + other.spans[2]),
    )


async def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Returns when the process is gone: by itself within `grace_s`, else killed. Without a thread that waits for it:
    there may be none left."""
    kill_at = time.monotonic() + grace_s
    while process.poll() is None:
        if time.monotonic() > kill_at:
            process.kill()
        await asyncio.sleep(_END_LOOK_S)
