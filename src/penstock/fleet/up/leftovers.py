"""Stops what a killed `penstock up` left running: routers first, then the replicas, by their controller where that one
still answers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from penstock.fleet.local.leftovers import end_all
from penstock.fleet.up import tree
from penstock.fleet.up.tree import Member

_SOCKET = "fleet.sock"


def stop_leftovers(folder: Path, found: Sequence[Member], grace_s: float) -> bool:
    """Ends routers, replicas and controller; whether there were any."""
    for one in found:
        if one.name != "controller":
            tree.end(one, grace_s + 5.0)
    if any(one.name == "controller" for one in found):
        asyncio.run(_shutdown(folder / _SOCKET, grace_s))
    for one in found:
        if not tree.end(one, 15.0):
            tree.end(one, 5.0, number=signal.SIGKILL)
    ended = end_all(folder / "local", grace_s)  # those that no controller could be asked to end
    if found:
        tree.write(folder, (), {})
    return bool(found or ended)


async def _shutdown(path: Path, grace_s: float) -> None:
    """Asks the controller, if there is one."""
    timeout = aiohttp.ClientTimeout(total=grace_s + 15.0)
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), timeout=timeout) as session,
            session.post(f"http://controller/internal/shutdown?grace_s={grace_s}") as answer,
        ):
            await answer.read()
