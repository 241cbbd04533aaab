from __future__ import annotations

import asyncio
import socket

import pytest

from penstock.core.errors import InvalidInput
from penstock.runtime.options import ModelOptions, ServerOptions
from penstock.runtime.server import run


async def test_start_that_fails_at_the_grpc_port_leaves_the_http_port_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        http_port = free.getsockname()[1]
        free.close()
        server = ServerOptions(http_port=http_port, grpc_port=taken.getsockname()[1])
        with pytest.raises(InvalidInput, match="gRPC"):
            await run(server, [ModelOptions(name="e", path="echo")], stop=asyncio.Event())
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", http_port)
