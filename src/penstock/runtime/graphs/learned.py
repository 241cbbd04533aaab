"""What routers have learned, in a file: read when a graph is loaded, written after rewards, never half.

The option `state` names the file. Writing happens in a thread, one at a time; rewards that come meanwhile are in the
next write. A kill loses what was not yet written: the rewards of the last moments, never the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from penstock.core.errors import LoadError
from penstock.graphs.bandit import Way

log = logging.getLogger("penstock.graph")


class _Learned(msgspec.Struct):
    trials: float
    rewards: float


class _File(msgspec.Struct):
    routers: dict[str, list[_Learned]]


def read(path: Path, ways: Mapping[str, Sequence[Way]]) -> None:
    """Fills `ways` with what the file says of routers that are still there with as many ways; nothing without a file.

    Raises:
        LoadError: there is a file, and it is not one of these.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        raise LoadError(f"the state file {path} cannot be read: {error}") from error
    for name, learned in found.routers.items():
        own = ways.get(name, ())
        if len(own) == len(learned):
            for way, each in zip(own, learned, strict=True):
                way.trials, way.rewards = each.trials, each.rewards


class Keeper:
    """Writes what `state` gives, whenever it is told that something was learned."""

    def __init__(self, path: Path, state: Callable[[], Mapping[str, object]]) -> None:
        self._path = path
        self._state = state
        self._stale = False
        self._writing: asyncio.Task[None] | None = None

    def note(self) -> None:
        """Something was learned."""
        self._stale = True
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def settled(self) -> None:
        """Returns when everything that was learned is in the file."""
        while self._writing is not None:
            await asyncio.wait({self._writing})

    async def _write(self) -> None:
        try:
            while self._stale:
                self._stale = False
                data = msgspec.json.encode({"routers": self._state()})
                try:
                    await asyncio.to_thread(self._replace, data)
                except OSError as error:
                    log.error("graph_state_not_written", extra={"path": str(self._path), "error": str(error)})
        finally:
            self._writing = None

    def _replace(self, data: bytes) -> None:
        # Two may write for a moment: a graph that was replaced, and its successor.
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}-{id(self)}.tmp")
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
