"""The ledger against real servers: ours, which must pass, and one that lies in every way, which must be caught."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import xml.dom.minidom
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from penstock import ledger
from penstock.ledger import page

TRIPLED = """
import time

import penstock


@penstock.model(inputs={"x": "f4[n, 3]"}, outputs={"y": "f4[n, 3]"})
def tripled(x):
    time.sleep(0.002)
    return {"y": 3 * x}
"""
METADATA = {
    "name": "tripled",
    "versions": ["1"],
    "platform": "a lie",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
}


@pytest.fixture
def tripled(server: Callable[..., Any], tmp_path: Path) -> Any:
    (tmp_path / "models.py").write_text(TRIPLED)
    return server({"tripled": {"path": f"{tmp_path}/models.py:tripled", "workers": 2}})


def target(running: Any) -> ledger.Target:
    return ledger.Target(running.http, "tripled", grpc=running.grpc)


def seconds(count: float, rate: float = 200, **options: Any) -> ledger.Plan:
    return ledger.Plan((ledger.Phase(count, rate),), **{"deadline_s": 2.0, **options})


async def test_a_truthful_server_passes_while_callers_leave_and_a_worker_is_killed(tripled: Any) -> None:
    fault = ledger.Fault(0.5, "kill", tripled.pid, "worker")
    plan = seconds(2, grpc_share=0.5, leave_share=0.2, faults=(fault,), watch_pid=tripled.pid)
    report = await ledger.run(target(tripled), plan)
    assert report.violations == []
    summary = report.summary()
    assert summary.outcomes["ok"] > 100 and summary.outcomes["left"] > 0
    assert len(report.events) == 1 and "kill worker" in report.events[0].what
    assert report.told_apart == 1.0 and report.memory[0].processes >= 3
    assert report.before is not None and report.after is not None
    for drawing in re.findall(r"<svg.*?</svg>", page.render(report, "<b>"), re.DOTALL):
        xml.dom.minidom.parseString(drawing)
    assert "<b>:" not in page.render(report, "<b>")


async def test_server_that_is_killed_cuts_and_refuses(tripled: Any) -> None:
    report = await ledger.run(target(tripled), seconds(1, faults=(ledger.Fault(0.5, "kill", tripled.pid),)))
    assert [violation.kind for violation in report.violations] == ["untruthful"]
    assert report.summary().outcomes["refused"] > 10
    assert not report.passed


class Liar:
    """A V2 server of its own that answers rightly until it is told not to."""

    def __init__(self) -> None:
        self.lie = ""
        self._last: dict[str, Any] = {}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int((re.search(r"content-length: (\d+)", head, re.IGNORECASE) or [0, 0])[1])
                body = await reader.readexactly(length)
                if "/infer" in head:
                    await self._infer(json.loads(body), writer)
                elif "/v2/models/tripled " in head:
                    self._write(writer, 200, METADATA)
                else:
                    self._write(writer, 404, {"error": "no such path"})
        writer.close()

    async def _infer(self, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        given = asked["inputs"][0]
        right = {**given, "name": "y", "data": [3 * value for value in given["data"]]}
        last, self._last = self._last or right, right
        if self.lie == "silent":
            return
        if self.lie == "refuses":
            self._write(writer, 503, {"error": "full"})
            return
        if self.lie == "too early":
            self._write(writer, 504, {"error": "late"})
            return
        if self.lie == "late":
            await asyncio.sleep(0.4)
        output = last if self.lie == "crossed" else right
        name = "somebody else's" if self.lie == "misnamed" else asked["id"]
        self._write(
            writer, 500 if self.lie == "error" else 200, {"id": name, "outputs": [output], "model_version": "1"}
        )
        if self.lie == "cut":
            writer.transport.abort()
        if self.lie == "twice":
            self._write(writer, 200, {"id": name, "outputs": [output], "model_version": "1"})
        if self.lie == "honest, without a length":
            writer.close()

    def _write(self, writer: asyncio.StreamWriter, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        cut = content[: len(content) // 2] if self.lie == "cut" else content
        length = b"" if self.lie == "honest, without a length" else b"Content-Length: %d\r\n" % len(content)
        writer.write(b"HTTP/1.1 %d x\r\n%b\r\n" % (status, length) + cut)


@contextlib.asynccontextmanager
async def listening(liar: Liar) -> AsyncIterator[str]:
    listener = await asyncio.start_server(liar.answer, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    listener.close()


@pytest.mark.parametrize(
    ("lie", "kinds"),
    [
        ("", []),
        ("crossed", ["crossed"]),
        ("misnamed", ["crossed"]),
        ("late", ["late"]),
        ("silent", ["lost", "useless"]),
        ("error", ["untruthful", "useless"]),
        ("cut", ["untruthful", "useless"]),
        ("twice", ["doubled"]),
        ("refuses", ["useless"]),
        ("too early", ["untruthful", "useless"]),
        ("honest, without a length", []),
    ],
)
async def test_each_lie_is_caught(lie: str, kinds: list[str]) -> None:
    liar = Liar()
    tell = ledger.Fault(0.0, "begin to lie", call=lambda: setattr(liar, "lie", lie))
    plan = seconds(0.4, 100, deadline_s=0.2, patience_s=0.3, faults=(tell,))
    async with listening(liar) as url:
        report = await ledger.run(ledger.Target(url, "tripled"), plan)
    assert [violation.kind for violation in report.violations] == kinds, report.violations


@pytest.mark.parametrize(
    ("answer", "kinds"), [("nothing", ["lost", "useless"]), ("garbage", ["untruthful", "useless"])], ids=str
)
async def test_lies_over_grpc_are_caught(answer: str, kinds: list[str]) -> None:
    async def infer(request: bytes, context: Any) -> bytes:
        if answer == "nothing":
            await asyncio.sleep(60)
        return b"\xff\xff"

    method = grpc.unary_unary_rpc_method_handler(infer)
    listener = grpc.aio.server()
    listener.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method}),)
    )
    port = listener.add_insecure_port("127.0.0.1:0")
    await listener.start()
    try:
        plan = seconds(0.4, 50, deadline_s=0.2, patience_s=0.3, grpc_share=1.0)
        async with listening(Liar()) as url:
            report = await ledger.run(ledger.Target(url, "tripled", grpc=f"127.0.0.1:{port}"), plan)
        assert [violation.kind for violation in report.violations] == kinds, report.violations
    finally:
        await listener.stop(None)


async def test_fault_that_finds_no_process_fails_the_run(tripled: Any) -> None:
    plan = seconds(0.5, 50, faults=(ledger.Fault(0.1, "kill", 2**22 + 1, "worker"),))
    report = await ledger.run(target(tripled), plan)
    assert [violation.kind for violation in report.violations] == ["harmless"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock.cli", "bench", "--ledger", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_command_measures_capacity_breaks_a_worker_and_writes_text_json_and_a_page(
    tripled: Any, tmp_path: Path
) -> None:
    shared = ["tripled", "--url", tripled.http, "--grpc-address", tripled.grpc, "--pid", str(tripled.pid)]
    load = ["--load", "0.2x:0.5,50:0.5", "--fault", "kill:worker@0.3", "--grpc-share", "0.3", "--deadline", "5"]
    done = bench(*shared, *load, "--html", str(tmp_path / "ledger.html"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "capacity" in done.stderr and done.stdout.splitlines()[-1] == "PASSED"
    assert "kill worker" in done.stdout
    assert (tmp_path / "ledger.html").read_text().count("<svg") == 3

    told = json.loads(bench(*shared, "--load", "50:0.5", "--json").stdout)
    assert told["passed"] and told["phases"][0]["outcomes"] == {"ok": told["phases"][0]["sent"]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--load", "fast"], "RATE:SECONDS"),
        (["--fault", "kill@1"], "--pid"),
        (["--allow", "everything"], "unsent"),
        (["--leave", "2"], "fraction"),
        (["--pid", "4194305"], "no such process"),
        (["--html", "/no/such/folder/x.html"], "cannot be written"),
    ],
)
def test_command_refuses_what_can_never_work(tripled: Any, arguments: list[str], says: str) -> None:
    done = bench("tripled", "--url", tripled.http, *arguments)
    assert done.returncode == 2 and says in done.stderr


def test_a_broken_rule_is_exit_status_1(tripled: Any) -> None:
    done = bench("tripled", "--url", tripled.http, "--pid", str(tripled.pid), "--load", "100:1", "--fault", "kill@0.5")
    assert done.returncode == 1 and "BROKEN" in done.stdout and "FAILED" in done.stdout
