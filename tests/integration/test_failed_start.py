from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from penstock.core.errors import InvalidInput
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions, ServerOptions
from penstock.runtime.server import run
from penstock.runtime.sources.memory import MemorySource
from penstock.telemetry.metrics import Metrics


async def test_start_that_fails_at_the_grpc_port_leaves_the_http_port_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        http_port = free.getsockname()[1]
        free.close()
        server = ServerOptions(http_port=http_port, grpc_port=taken.getsockname()[1])
        with pytest.raises(InvalidInput, match="grpc_port"):
            await run(server, [ModelOptions(name="e", path="echo")], stop=asyncio.Event())
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", http_port)


async def test_load_that_fails_does_not_wait_for_the_hash_of_a_large_file(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(16 << 30)  # sparse: no room on the disk, and many seconds of hashing
    began = time.monotonic()
    manager = Manager(Metrics(), 2)
    manager.apply(MemorySource([ModelOptions(path=str(tmp_path / "model.onnx"))]).poll())
    await manager.settled()
    assert "cannot load model.onnx" in manager.failures()["model"]
    await manager.close(1)
    assert time.monotonic() - began < 6
