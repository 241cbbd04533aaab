"""Calls per second of the gRPC listener, and of the two bare ways to serve gRPC from one event loop.

`listener` is Penstock's with a model that gives back its input; `aio` is grpc.aio alone, giving back the bytes;
`threads` is grpcio's threaded server handing the bytes to the loop and back. Server and load generator are processes of
their own; what counts is the server's processor time for a call, since the Python client is the slower half.

    python bench/grpc_listener.py [listener aio threads …] [--seconds 3] [--concurrency 1,16,64]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor

METHOD = "/inference.GRPCInferenceService/ModelInfer"
THREADS = 64


def message() -> bytes:
    """A ModelInferRequest with one FP32 tensor of shape (1, 64), raw."""
    from penstock.protocols.v2_grpc import plug

    request = plug._schema.message("inference.ModelInferRequest")(model_name="echo", id="1")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    request.raw_input_contents.append(bytes(256))
    data: bytes = request.SerializeToString()
    return data


async def serve_listener() -> int:
    from penstock.core.door import Door
    from penstock.core.messages import Request, Response
    from penstock.core.servable import Signature
    from penstock.core.tensor import parse_spec
    from penstock.protocols.v2_grpc import plug
    from penstock.runtime.listeners.grpc import GrpcListener

    spec_in, spec_out = parse_spec("x", "f4[n, 64]"), parse_spec("y", "f4[n, 64]")
    signature = Signature((spec_in,), (spec_out,), platform="echo", batchable=True)

    class EchoDoor(Door):
        def signature(self, model: str, version: str = "") -> Signature:
            return signature

        def submit(self, request: Request) -> asyncio.Future[Response]:
            future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
            answer = Response(request.model, "1", {"y": request.inputs["x"]}, request.id)
            asyncio.get_running_loop().call_soon(_settle, future, answer)
            return future

        async def stream(self, request: Request) -> AsyncIterator[Response]:
            yield await self.submit(request)

        async def log_settings(self, update: Mapping[str, object] | None = None) -> Mapping[str, bool]:
            return {}

    listener = globals()["_keep"] = GrpcListener(EchoDoor(), [plug])
    return await listener.start("127.0.0.1", 0)


def _settle(future: asyncio.Future[object], answer: object) -> None:
    if not future.done():
        future.set_result(answer)


async def serve_aio() -> int:
    import grpc

    async def infer(data: bytes, context: object) -> bytes:
        return data

    server = grpc.aio.server()
    _add(server, infer)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    globals()["_keep"] = server  # it stops when collected
    return int(port)


async def serve_threads() -> int:
    import grpc

    loop = asyncio.get_running_loop()
    waiting: list[tuple[bytes, threading.Lock, list[bytes]]] = []

    def drain() -> None:
        batch, waiting[:] = list(waiting), []
        for data, done, box in batch:
            box.append(data)
            done.release()

    def infer(data: bytes, context: object) -> bytes:
        done, box = threading.Lock(), []
        done.acquire()
        waiting.append((data, done, box))
        if len(waiting) == 1:
            loop.call_soon_threadsafe(drain)
        done.acquire()
        return box[0]

    server = grpc.server(ThreadPoolExecutor(THREADS))
    _add(server, infer)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    globals()["_keep"] = server
    return int(port)


def _add(server: object, infer: object) -> None:
    import grpc

    service, _, name = METHOD[1:].partition("/")
    handlers = {name: grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))  # type: ignore[attr-defined]


async def serve(kind: str) -> None:
    print(await {"listener": serve_listener, "aio": serve_aio, "threads": serve_threads}[kind](), flush=True)
    await asyncio.Event().wait()


def load(port: int, pid: int, concurrency: int, seconds: float) -> str:
    """Keeps `concurrency` calls in flight for `seconds`, over at most four connections; one line of figures."""
    import grpc

    data = message()
    own = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(f"127.0.0.1:{port}", own) for _ in range(min(4, concurrency))]
    calls = [channel.unary_unary(METHOD) for channel in channels]
    for call in calls:
        call(data)
    times: list[float] = []
    over = threading.Event()
    ended = threading.Semaphore(0)

    def next_call(call: grpc.UnaryUnaryMultiCallable) -> None:
        began = time.perf_counter()

        def done(future: grpc.Future) -> None:
            future.result()
            times.append(time.perf_counter() - began)
            if over.is_set():
                ended.release()
            else:
                next_call(call)

        call.future(data).add_done_callback(done)

    used, began = _processor_s(pid), time.perf_counter()
    for index in range(concurrency):
        next_call(calls[index % len(calls)])
    time.sleep(seconds)
    used, took, count = _processor_s(pid) - used, time.perf_counter() - began, len(times)
    over.set()
    for _ in range(concurrency):
        ended.acquire()
    times.sort()
    p50, p99 = times[len(times) // 2] * 1e3, times[int(len(times) * 0.99)] * 1e3
    return (
        f"{concurrency:4d} in flight  {count / took:7.0f} calls/s  p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  "
        f"server {used / count * 1e6:4.0f} us a call ({used / took:.0%} of a core)"
    )


def _processor_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["listener", "aio", "threads"])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--concurrency", default="1,16,64")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        import uvloop

        uvloop.run(serve(arguments.serve))
        return
    for kind in arguments.kinds:
        server = subprocess.Popen([sys.executable, __file__, "--serve", kind], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            for concurrency in map(int, arguments.concurrency.split(",")):
                print(f"{kind:9s}", load(port, server.pid, concurrency, arguments.seconds), flush=True)
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
