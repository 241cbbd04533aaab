"""What of a running server can be reached is what its configuration says, and asks for the key: nothing else is open.

Nothing here is a list of today's ports or routes. Sockets are those the kernel knows, routes those of the router's own
table, methods those of the gRPC listener's own, so a new one cannot be forgotten.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from numpy_door import NumpyDoor
from open_doors import Door, doors, named_memory, tree

from penstock.protocols import CallRoute
from penstock.runtime.listeners.grpc import GrpcOptions
from penstock.runtime.listeners.grpc_calls import Methods
from penstock.runtime.listeners.hold import Hold
from penstock.runtime.listening import grpc_protocols, http_protocols

KEY = "a key that nobody guesses"
SAME = """
import penstock

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def same(x):
    return {"y": x}
"""
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("model") / "small.py"
    file.write_text(SAME)
    return f"{file}:same"


# Sockets


def test_the_reader_of_the_kernels_tables_sees_every_kind_of_door() -> None:
    """Seen to fail: with one of each open, each is found."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        unix.bind("\0penstock-open-doors")
        waiting = Door("tcp", f"127.0.0.1:{tcp.getsockname()[1]}")
        before = doors({os.getpid()})
        assert Door("unix", "@penstock-open-doors") in before and waiting not in before
        tcp.listen()
        unix.listen()
        assert {waiting, Door("udp", f"127.0.0.1:{udp.getsockname()[1]}")} <= doors({os.getpid()})


@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("127.0.0.1", {"fronts": 2}),
        ("127.0.0.1", {"grpc": False, "grpc_port": None}),
        ("::1", {}),
        ("0.0.0.0", {"api_key": KEY, "fronts": 2}),
    ],
    ids=["two fronts", "no grpc", "ipv6", "all of ipv4"],
)
def test_listening_sockets_are_those_of_the_configuration(
    server: Start, model: str, host: str, options: dict[str, Any]
) -> None:
    running = server({"same": {"path": model, "workers": 2}}, host=host, **options)
    pids = tree(running.pid)
    assert len(pids) >= 3 + (options.get("fronts") == 2), "two workers, and an extra front"
    addresses = {urlsplit(running.http).netloc} | ({running.grpc} if options.get("grpc", True) else set())
    assert doors(pids) == {Door("tcp", address.replace("[::1]", "::1")) for address in addresses}
    assert named_memory(pids) == set()


# Routes and methods


@pytest.fixture(scope="module")
def keyed(shared_server: Start, model: str) -> Any:
    return shared_server({"same": {"path": model, "workers": 1}}, api_key=KEY, fronts=2)


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
# What needs no key: probes, and the page, which holds nothing of this server. Adding to it is a decision, so it is here.
PUBLIC = {"/", "/docs", "/health", "/livez", "/playground", "/readyz", "/v2/health/live", "/v2/health/ready"}


def ask(running: Any, method: str, path: str) -> tuple[int, bytes]:
    parts = urlsplit(running.http)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    try:
        connection.request(method, path, b"{}" if method in ("POST", "PUT", "PATCH") else None)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def patterns() -> dict[str, bool]:
    """Every pattern of the router's table and whether one of its routes is public."""
    found: dict[str, bool] = {}
    for protocol in http_protocols():
        for route in protocol.routes():
            public = isinstance(route, CallRoute) and route.public
            found[route.pattern] = found.get(route.pattern, False) or public
    return found


def test_only_probes_and_the_page_are_public() -> None:
    assert {pattern for pattern, public in patterns().items() if public} == PUBLIC


def test_every_route_asks_for_the_key_by_every_method(keyed: Any) -> None:
    known = patterns()
    assert len(known) > 30
    for pattern, public in known.items():
        path = pattern.replace("{model}", "same").replace("{version}", "1")
        path = path.replace("{graph}", "same").replace("{unit}", "u").replace("{namespace}", "n")
        path = path.replace("{region}", "r").replace("{repository}", "r").replace("{reader}", "r")
        path = path.replace("{file}", "f").replace("{batch}", "b").replace("{response}", "r")
        assert "{" not in path, f"{pattern} holds a name that this test does not know"
        for method in METHODS:
            status, body = ask(keyed, method, path)
            if public and method in ("GET", "HEAD"):
                assert status == 200, (method, path)
            else:
                assert status == 401, (method, path, status)
            told = re.sub(rb'"request_id":"\w+"', b"", body)  # digits at random, which may look like anything
            assert b"f4" not in told and b"FP32" not in told


def handlers() -> tuple[set[str], set[str]]:
    """The paths of all methods of the gRPC listener: public ones and others."""

    async def made() -> tuple[set[str], set[str]]:
        methods = Methods(NumpyDoor({}), grpc_protocols(), GrpcOptions(), asyncio.Event(), Hold())
        return set(methods._public), set(methods._handlers)

    return asyncio.run(made())


def test_every_grpc_method_but_health_asks_for_the_key(keyed: Any) -> None:
    public, others = handlers()
    assert public == {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}
    assert len(others) >= 20
    for path in sorted(others | {"/no.Such/Method", "/grpc.health.v1.Health/Other", "/"}):
        for _ in range(2):  # on connections of their own: either front may get them
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(keyed.grpc, options) as channel, pytest.raises(grpc.RpcError) as refused:
                list(channel.stream_stream(path)(iter([b""]), timeout=20))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, path
