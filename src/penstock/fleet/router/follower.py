"""Follows the controller's route table, and keeps the last one on disk: with it a router starts and serves while there
is no controller."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from penstock.core.errors import NotReady
from penstock.fleet.router.control import Control
from penstock.fleet.routes import Table

log = logging.getLogger("penstock.router")

CACHE: Final = "routes.json"
_POLL_S = 30.0
_SPARE_S = 5.0  # for an answer that is on its way
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class Follower:
    """Calls `follow` with each new table, on the loop. `load`, then `run` as a task."""

    def __init__(self, state: Path, router: str, control: Control, follow: Callable[[Table], None]) -> None:
        self._cache = state / CACHE
        self._router = router
        self._control = control
        self._follow = follow
        self.version = 0
        self.connected = False  # whether the last call was answered

    def load(self) -> bool:
        """Takes the table of the cache; whether there was one that can be read."""
        try:
            table = msgspec.json.decode(self._cache.read_bytes(), type=Table)
        except FileNotFoundError:
            return False
        except (OSError, msgspec.DecodeError) as error:
            log.warning("cached_routes_unusable", extra={"file": str(self._cache), "problem": str(error)[:300]})
            return False
        self._take(table)
        return True

    async def run(self) -> None:
        """Asks until it is cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                changed = await self._ask()
            except NotReady as error:
                if self.connected:
                    log.warning("controller_away", extra={"problem": error.message, "table_version": self.version})
                self.connected = False
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                continue
            if not self.connected:
                log.info("controller_answers", extra={"table_version": self.version})
            self.connected = True
            pause_s = _FIRST_PAUSE_S
            if not changed:
                # Not more often than this, should the controller answer at once without anything new.
                await asyncio.sleep(_FIRST_PAUSE_S * random.uniform(0.5, 1.5))

    async def _ask(self) -> bool:
        """Whether there is a new table. Raises: NotReady."""
        target = f"/internal/routes?after={self.version}&router={quote(self._router)}&timeout_s={_POLL_S:g}"
        status, body = await self._control.call("GET", target, timeout_s=_POLL_S + _SPARE_S)
        if status in (204, 304):
            return False
        if status != 200:
            raise NotReady(f"it answered {status}: {body[:200].decode(errors='replace')}")
        try:
            table = msgspec.json.decode(body, type=Table)
        except msgspec.DecodeError as error:
            raise NotReady(f"its table cannot be read: {error}") from None
        if table.version == self.version:
            return False
        self._take(table)
        await asyncio.to_thread(self._keep, body)
        return True

    def _take(self, table: Table) -> None:
        self.version = table.version
        try:
            self._follow(table)
        except Exception:  # the next table may be better; the one before is still in force where this one is not
            log.exception("following a table failed")

    def _keep(self, body: bytes) -> None:
        """Replaces the cache, as a whole or not at all. It holds digests and a secret: nobody else may read it."""
        new = self._cache.with_name(f"{CACHE}.{os.getpid()}")
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(body)
            new.replace(self._cache)
        except OSError as error:
            log.warning("routes_not_cached", extra={"problem": str(error)})
            with contextlib.suppress(OSError):
                new.unlink()
