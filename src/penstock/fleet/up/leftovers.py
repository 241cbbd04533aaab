"""Stops what a killed `penstock up` left running: routers first, then the replicas, by their controller."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from penstock.core.errors import NotReady
from penstock.fleet.up import tree
from penstock.fleet.up.tree import Member

_SOCKET = "fleet.sock"


def stop_replicas(folder: Path, found: Sequence[Member], grace_s: float) -> None:
    """Ends routers, replicas and controller. Raises: NotReady: the controller is gone, or does not answer."""
    for one in found:
        if one.name != "controller":
            tree.end(one, grace_s + 5.0)
    asyncio.run(_shutdown(folder / _SOCKET, grace_s))
    for one in found:
        tree.end(one, 15.0)


async def _shutdown(path: Path, grace_s: float) -> None:
    timeout = aiohttp.ClientTimeout(total=grace_s + 15.0)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), timeout=timeout) as session,
            session.post(f"http://controller/internal/shutdown?grace_s={grace_s}") as answer,
        ):
            await answer.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise NotReady(
            f"no controller answers at {path}, so its replicas run on; `penstock up` with this state takes them over, "
            "and can then be stopped"
        ) from error
