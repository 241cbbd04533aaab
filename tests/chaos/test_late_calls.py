"""F11 over gRPC: callers who give up just when they are answered are no errors of the server's."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from mixed_load import Mix, write_models


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(1_000, id="short"),
        pytest.param(20_000, id="20000", marks=[pytest.mark.chaos, pytest.mark.timeout(300)]),
    ],
)
async def test_calls_that_end_while_they_are_answered_leave_no_trace(
    server: Callable[..., Any], tmp_path: Path, count: int
) -> None:
    running = server(write_models(tmp_path), log_level="info")
    message = Mix(running.http, running.grpc).message("waits")
    codes: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def ask() -> None:
            for _ in range(count // 16):
                try:
                    await infer(message, timeout=0.002)
                    codes["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    codes[error.code().name] += 1

        await asyncio.gather(*(ask() for _ in range(16)))
        assert set(codes) <= {"OK", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
        assert codes["DEADLINE_EXCEEDED"] > count // 2
        assert await infer(message, timeout=30)
    assert running.stop() == 0
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    assert [line for line in lines if line["level"] == "error" and line["event"] != "model_error"] == []
