"""What the router's gRPC front adds to a call: latency, processor time of the router, and memory for a large body.

Replica, router and load generator are processes of their own. The replica gives back what it gets, through grpc.aio, so
that the router's share shows. `unary` is a method that the router knows to be unary, `any` one that it does not.

    python bench/grpc_pass_through.py [--seconds 3] [--concurrency 1,16]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

METHODS = {"unary": "/inference.GRPCInferenceService/ModelInfer", "any": "/any.Service/Echo"}
NAMED = (("penstock-endpoint", "m"),)
BODY_BYTES = 100 << 20


async def serve() -> None:
    import grpc

    class Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: object) -> grpc.RpcMethodHandler:
            async def echo(message: bytes, context: object) -> bytes:
                return message

            return grpc.unary_unary_rpc_method_handler(echo)

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Methods(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def replica() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def router(upstream: str, state: Path) -> Iterator[tuple[str, int]]:
    import msgspec

    from penstock.fleet.routes import Arm, Endpoint, Table, Upstream

    table = Table(1, (Endpoint("m", (Arm(1, 1.0, (Upstream("one", "", upstream),)),), 1),))
    (state / "routes.json").write_bytes(msgspec.json.encode(table))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "penstock.fleet.router", "--state", str(state), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--grpc-port", str(port), "--log-format", "json"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "router_serving" in line:
                break
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait()


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise RuntimeError("the kernel does not tell the peak")


async def load(address: str, method: str, seconds: float, concurrency: int) -> list[float]:
    import grpc

    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call, message = channel.unary_unary(method), b"\x0a\x01m" + bytes(256)
        await call(message, metadata=NAMED)
        until = time.perf_counter() + seconds

        async def loop() -> None:
            while (began := time.perf_counter()) < until:
                await call(message, metadata=NAMED)
                latencies.append(time.perf_counter() - began)

        await asyncio.gather(*(loop() for _ in range(concurrency)))
    return latencies


async def send_large(address: str) -> float:
    import grpc

    async with grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        began = time.perf_counter()
        await channel.unary_unary(METHODS["unary"])(bytes(BODY_BYTES), metadata=NAMED)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--concurrency", default="1,16")
    options = parser.parse_args()
    if options.serve:
        import uvloop

        uvloop.run(serve())
        return
    with tempfile.TemporaryDirectory() as state, replica() as upstream, router(upstream, Path(state)) as (routed, pid):
        for concurrency in map(int, options.concurrency.split(",")):
            for name, method in METHODS.items():
                direct = asyncio.run(load(upstream, method, options.seconds, concurrency))
                before = processor_s(pid)
                through = asyncio.run(load(routed, method, options.seconds, concurrency))
                spent = processor_s(pid) - before
                figures: dict[str, object] = {"method": name, "in_flight": concurrency, "calls": len(through)}
                for quantile in (50, 99):
                    apart = [statistics.quantiles(some, n=100)[quantile - 1] * 1e6 for some in (direct, through)]
                    figures[f"p{quantile}_us"] = [round(one) for one in apart]
                figures["router_processor_us"] = round(spent / len(through) * 1e6)
                print(json.dumps(figures), flush=True)
        before_kb = peak_kb(pid)
        direct_s, through_s = (asyncio.run(send_large(address)) for address in (upstream, routed))
        peak = (peak_kb(pid) - before_kb) * 1024 / BODY_BYTES
        print(
            json.dumps(
                {"body_mib": BODY_BYTES >> 20, "seconds": [round(direct_s, 3), round(through_s, 3)],
                 "router_peak_in_bodies": round(peak, 2)}
            )
        )  # fmt: skip


if __name__ == "__main__":
    main()
