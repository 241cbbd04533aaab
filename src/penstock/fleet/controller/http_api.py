"""The controller's HTTP API: a Unix socket that only its owner can open, and TCP where a key was given.

What users call is in `deployments_api`, `traffic_api` and `tenants_api`, what routers and the supervisor call in
`internal_api`; what they share in `http_calls`.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from penstock.core.errors import InvalidInput
from penstock.fleet.controller import deployments_api, http_calls, internal_api, tenants_api, traffic_api
from penstock.fleet.controller.loop import Controller

SOCKET = "fleet.sock"


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the API listens. `admin_port` is None without a TCP port."""

    socket: Path
    admin_port: int | None
    runners: tuple[web.AppRunner, ...]

    async def close(self) -> None:
        for runner in self.runners:
            await runner.cleanup()
        self.socket.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Admin:
    """The TCP port. The key is what callers send as `Authorization: Bearer KEY`."""

    host: str
    port: int
    key: str


async def listen(
    controller: Controller, state: Path, admin: Admin | None, shut_down: Callable[[float], Awaitable[None]],
    check_files: bool = False,
) -> Listening:  # fmt: skip
    """Starts to listen. `shut_down` is what `POST /internal/shutdown` does, with its grace in seconds.

    Raises:
        InvalidInput: an address that cannot be had.
    """
    runners: list[web.AppRunner] = []
    path = state / SOCKET
    port = None
    if admin is not None:
        key = http_calls.digest(admin.key)
        tcp = socket.socket(socket.AF_INET6 if ":" in admin.host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((admin.host, admin.port))
        except OSError as error:
            tcp.close()
            raise InvalidInput(f"admin port {admin.host}:{admin.port}: {error.strerror}") from None
        port = int(tcp.getsockname()[1])
        runner = await _runner(_application(controller, key, port, shut_down, check_files))
        await web.SockSite(runner, tcp).start()
        runners.append(runner)
    runner = await _runner(_application(controller, None, port, shut_down, check_files))
    await web.SockSite(runner, _unix(path)).start()
    runners.append(runner)
    return Listening(path, port, tuple(runners))


def _unix(path: Path) -> socket.socket:
    """A socket at the path, for its owner only from its first moment on. One that a killed controller left is replaced:
    the state's lock says that there is no other."""
    if len(os.fsencode(path)) > 100:  # sun_path has 108 bytes: unix(7)
        raise InvalidInput(f"the state's path {path.parent} is too long for a socket in it; name a shorter one")
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        raise InvalidInput(f"{path} is in the way: it is no socket")
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        made.bind(str(path))
    except OSError as error:
        made.close()
        raise InvalidInput(f"socket {path}: {error.strerror}") from None
    finally:
        os.umask(before)
    return made


async def _runner(application: web.Application) -> web.AppRunner:
    # Long polls are cut off at the end: whoever polls comes again.
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2, keepalive_timeout=75.0)
    await runner.setup()
    return runner


def _application(
    controller: Controller, key: bytes | None, port: int | None, shut_down: Callable[[float], Awaitable[None]],
    check_files: bool,
) -> web.Application:  # fmt: skip
    application = web.Application(
        middlewares=[http_calls.errors(), http_calls.guard(key)], client_max_size=http_calls.LARGEST_BODY
    )
    application.add_routes(deployments_api.Deployments(controller, check_files).routes())
    application.add_routes(traffic_api.TrafficCalls(controller).routes())
    application.add_routes(tenants_api.Tenants(controller).routes())
    # What routers are told (the tenants' digests, the secret) and the supervisor's calls stay on the socket.
    application.add_routes(internal_api.Internals(controller, port, shut_down).routes(internals=key is None))
    return application
