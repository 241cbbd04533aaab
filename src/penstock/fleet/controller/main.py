"""The controller's process: its arguments, its lock, its signals.

It ends at SIGTERM and leaves replicas running, so that it can be replaced while they serve. `POST /internal/shutdown`
stops them too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock import config, plugins
from penstock.core.errors import InvalidInput, PenstockError
from penstock.fleet.controller import alone
from penstock.fleet.controller.http_api import Admin, listen
from penstock.fleet.controller.loop import Controller
from penstock.fleet.drivers import Driver, Settings
from penstock.fleet.placement import Policy
from penstock.fleet.routes import endpoints_key
from penstock.fleet.store.engine import default_url
from penstock.fleet.store.store import Store
from penstock.telemetry import logs

log = logging.getLogger("penstock.controller")


@dataclass(frozen=True, slots=True)
class Arguments:
    state: Path
    database: str
    admin: Admin | None
    driver: str
    placement: str
    router_url: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a controller; gives the exit status."""
    parser = argparse.ArgumentParser(prog="penstock.fleet.controller", description="The platform's controller.")
    add = parser.add_argument
    add("--state", required=True, metavar="DIR", help="folder of the socket, the database and the driver")
    add("--database", metavar="URL", help="instead of SQLite in the state; PENSTOCK_UP_DATABASE shows it to fewer")
    add("--admin-host", default="127.0.0.1")
    add("--admin-port", type=int, help="listen on TCP too; needs --admin-key-file")
    add("--admin-key-file", metavar="FILE")
    add("--driver", default="local", help="where replicas run")
    add("--placement", default="pack", help="how replicas are spread")
    add("--router-url", default="", metavar="URL", help="where graphs and models call other endpoints")
    add("--log-format", default="auto", choices=logs.FORMATS)
    add("--log-level", default="info", choices=tuple(logs.LEVELS))
    given = parser.parse_args(arguments)
    logs.configure(given.log_format, given.log_level)
    try:
        read = _read(given)
        with alone.locked(read.state):
            import uvloop

            uvloop.run(_run(read))
    except PenstockError as error:
        print(f"error: {error.message}", file=sys.stderr, flush=True)
        return 2
    return 0


def _read(given: argparse.Namespace) -> Arguments:
    state = Path(given.state).expanduser().absolute()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    admin = None
    if given.admin_port is not None:
        if given.admin_key_file is None:
            raise InvalidInput("--admin-port needs --admin-key-file: whoever reaches that port can run code here")
        try:
            key = Path(given.admin_key_file).read_text().strip()
        except OSError as error:
            raise InvalidInput(f"--admin-key-file {given.admin_key_file}: {error.strerror}") from None
        if len(key) < 16:
            raise InvalidInput(f"--admin-key-file {given.admin_key_file}: the key has at least 16 characters")
        admin = Admin(given.admin_host, given.admin_port, key)
    database = given.database or config.environment().get("PENSTOCK_UP_DATABASE") or default_url(state)
    return Arguments(state, database, admin, given.driver, given.placement, given.router_url)


async def _run(arguments: Arguments) -> None:
    store = Store(arguments.database)
    lock = alone.DatabaseLock(store.engine)
    try:
        lock.hold()
        with contextlib.closing(lock):
            key = endpoints_key(store.secret)
            settings = Settings(arguments.state / arguments.driver, store.fleet_id, arguments.router_url, key)
            settings.folder.mkdir(mode=0o700, exist_ok=True)
            made = plugins.load("penstock.fleet.drivers", arguments.driver)
            driver: Driver = made(settings)  # type: ignore[operator]  # what a driver owes is tested by conformance
            placement: Policy = plugins.load("penstock.fleet.placement", arguments.placement)  # type: ignore[assignment]
            try:
                await _serve(arguments, Controller(store, driver, placement, hold=lock.hold))
            finally:
                await driver.close()
    finally:
        store.close()


async def _serve(arguments: Arguments, controller: Controller) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)

    async def shut_down(grace_s: float) -> None:
        await controller.shut_down(grace_s)
        loop.call_later(0.5, told.set)  # the answer goes out first

    await controller.open()
    running = asyncio.create_task(controller.run())
    listening = await listen(controller, arguments.state, arguments.admin, shut_down, arguments.driver == "local")
    log.info(
        "controller_ready",
        extra={"socket": str(listening.socket), "admin_port": listening.admin_port, "pid": os.getpid()},
    )
    try:
        stop = asyncio.create_task(told.wait())
        await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
        if running.done() and not told.is_set():
            running.result()  # what ended it unasked; after a shutdown nothing
            await told.wait()
    finally:
        await listening.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
