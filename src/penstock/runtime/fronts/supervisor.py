"""Starts extra front processes, keeps their tables fresh, replaces those that die, and drains them at the end."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import subprocess
import sys

from penstock.core.errors import Internal
from penstock.runtime.engine import Engine
from penstock.runtime.fronts import wire
from penstock.runtime.fronts.gate import Gate
from penstock.runtime.options import ServerOptions

log = logging.getLogger("penstock.fronts")

_START_S = 30.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 10.0


class Fronts:
    """The extra fronts of one server. `gates` are those that live."""

    def __init__(
        self, engine: Engine, options: ServerOptions, api_keys: tuple[str, ...], http_port: int, grpc_port: int | None
    ) -> None:
        self.gates: set[Gate] = set()
        self._engine = engine
        self._setup = wire.Setup(options.host, http_port, grpc_port, dataclasses.asdict(options), api_keys)
        self._count = options.fronts - 1
        self._keepers: list[asyncio.Task[None]] = []
        self._draining: float | None = None
        self._published = False

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
        """Returns when every front has finished what it held, or was cut after `grace_s`."""
        self._draining = grace_s
        for gate in self.gates:
            gate.send(wire.Drain(grace_s))
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def _publish(self) -> None:
        self._published = False
        table = self._engine.table()
        for gate in self.gates:
            gate.send(table)

    async def _keep(self, started: asyncio.Future[None]) -> None:
        delay_s = _FIRST_DELAY_S
        while self._draining is None:
            try:
                await self._run_one(started)
                delay_s = _FIRST_DELAY_S
            except Internal as error:
                if not started.done():
                    started.set_exception(error)
                    return
                log.error("front_failed", extra={"error": str(error)})
                delay_s = min(_LONGEST_DELAY_S, 2 * delay_s)
            if self._draining is None:
                log.warning("front_replaced", extra={"delay_s": delay_s})
                await asyncio.sleep(delay_s)

    async def _run_one(self, started: asyncio.Future[None]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = _launch(theirs)
        _, gate = await asyncio.get_running_loop().create_unix_connection(lambda: Gate(self._engine), sock=ours)
        try:
            gate.send(self._setup)
            gate.send(self._engine.table())
            ready, _ = await asyncio.wait(
                {gate.started, gate.closed}, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED
            )
            if gate.started not in ready:
                raise Internal("an extra front process did not start; its standard error says why")
            self.gates.add(gate)
            gate.send(self._engine.table())
            if self._draining is not None:  # it was starting when the others were told
                gate.send(wire.Drain(self._draining))
            if not started.done():
                started.set_result(None)
            await gate.closed
        finally:
            self.gates.discard(gate)
            gate.close()
            await asyncio.to_thread(_end, process, (self._draining or 0.0) + 1.0)


def _launch(sock: socket.socket) -> subprocess.Popen[bytes]:
    # Not by asyncio: its fork would run grpc's handlers for forks, which may block. This one is a vfork and exec.
    return subprocess.Popen(
        [sys.executable, "-m", "penstock.runtime.fronts.main", str(sock.fileno())],
        pass_fds=[sock.fileno()],
        stdin=subprocess.DEVNULL,
    )


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Returns when the process is gone: by itself within `grace_s`, else killed."""
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
