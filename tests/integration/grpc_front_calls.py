"""Calls through the router's gRPC front."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest

from penstock.core.protobuf import length_prefix

INFER = "/inference.GRPCInferenceService/ModelInfer"
NAMED = (("penstock-endpoint", "m"),)


def infer_request(name: str, padding: int = 0) -> bytes:
    """A ModelInferRequest with a name, an id, and raw contents."""
    parts = [(1, name.encode()), (3, b"id-1"), (7, b"x" * padding)]
    return b"".join(length_prefix(number, len(text)) + text for number, text in parts)


async def fails(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def eventually(condition: Any, within_s: float = 10.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        await asyncio.sleep(0.01)


def channel(address: str, **options: Any) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=[(f"grpc.{key}", value) for key, value in options.items()])
