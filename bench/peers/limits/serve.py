"""Answers every HTTP request and every gRPC call with the same bytes: `serve.py HTTP_PORT GRPC_PORT WORKLOAD`."""

from __future__ import annotations

import asyncio
import sys

import grpc
import uvloop
from tritonclient.grpc import service_pb2

BODY = b'{"y":[' + b",".join([b"0.12345678"] * 10) + b"]}"


class Constant(asyncio.Protocol):
    """Counts body bytes only to know where the next request begins; reads nothing else."""

    def __init__(self, body: bytes) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        self.left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if self.left == 0:
            end = data.index(b"\r\n\r\n") + 4
            head = data[:end].lower()
            at = head.index(b"content-length:") + 15
            self.left = end + int(head[at : head.index(b"\r\n", at)])
        self.left -= len(data)
        if self.left == 0:
            self.write(self.answer)


class ConstantCall(grpc.GenericRpcHandler):
    """One message for every unary call, without decoding the request."""

    def __init__(self) -> None:
        response = service_pb2.ModelInferResponse(model_name="digits", model_version="1")
        response.outputs.add(name="y", datatype="FP32", shape=(1, 10))
        response.raw_output_contents.append(bytes(40))
        answer = response.SerializeToString()

        async def unary(request: bytes, context: object) -> bytes:
            return answer

        self.handler = grpc.unary_unary_rpc_method_handler(unary)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self.handler


async def main(http_port: int, grpc_port: int, workload: str) -> None:
    body = bytes(40) if workload == "conv" else BODY
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Constant(body), "127.0.0.1", http_port)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((ConstantCall(),))
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
