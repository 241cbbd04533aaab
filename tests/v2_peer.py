"""A plain server of the V2 protocol on the standard library, and a scripted one that misbehaves as it is told.

The first shares nothing with Penstock's own server but the tensors of `core`, so that the client is also held against
another reading of the protocol.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from penstock.core.tensor import Array, from_wire, to_wire

DATATYPES = {"echo": {"x": "FP32"}, "wide": {"x": "BF16", "s": "BYTES", "n": "UINT8"}}


class V2Server(ThreadingHTTPServer):
    """Answers every inference with its inputs as outputs. Keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heads: list[dict[str, str]] = []
        self.bodies: list[dict[str, object]] = []
        self.paths: list[str] = []
        self.connections = 0
        self.broken_pipes = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def process_request(self, request: object, client_address: object) -> None:
        self.connections += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]  # the library's own arguments

    def handle_error(self, request: object, client_address: object) -> None:
        self.broken_pipes.set()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are written apart
    server: V2Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        answers: dict[str, object] = {
            "/v2": {"name": "peer", "version": "1", "extensions": ["binary_tensor_data"]},
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True},
            "/v2/models/stats": {"model_stats": [_statistics("echo"), _statistics("wide")]},
            "/v2/models/echo/stats": {"model_stats": [_statistics("echo")]},
            "/v2/models/echo/config": {"max_batch_size": 8},
        }
        name = self.path.split("/")[3] if self.path.startswith("/v2/models/") else ""
        if self.path in answers:
            self._json(200, answers[self.path])
        elif self.path == "/v2/models/echo/ready":
            self._send(200, b"", {})
        elif self.path.endswith("/ready"):
            self._json(400, {"error": "model version not ready"})
        elif name in DATATYPES:
            inputs = [{"name": n, "datatype": d, "shape": [-1, 4]} for n, d in DATATYPES[name].items()]
            self._json(200, {"name": name, "versions": ["1"], "platform": "peer", "inputs": inputs, "outputs": None})
        else:
            self._json(404, {"error": f"unknown model '{name}'"})

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        self.server.heads.append({name.lower(): value for name, value in self.headers.items()})
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v2/repository/index":
            states = [{"name": "echo", "version": "1", "state": "READY"}, {"name": "cold"}]
            self._json(200, states[:1] if json.loads(body).get("ready") else states)
        elif self.path.endswith("/load") or self.path.endswith("/unload"):
            self.server.bodies.append(json.loads(body))
            self._send(200, b"", {})
        elif self.path.endswith("/generate_stream"):
            self._stream(json.loads(body))
        elif self.path.endswith("/generate"):
            self._json(200, {"text_output": str(json.loads(body)["text_input"]).upper()})
        elif self.path.startswith("/v2/models/missing/"):
            self._json(404, {"error": "unknown model 'missing'"})
        else:
            self._infer(body)

    def _infer(self, body: bytes) -> None:
        size = int(self.headers["Inference-Header-Content-Length"])
        head = json.loads(body[:size])
        self.server.bodies.append(head)
        outputs, at = [], size
        wanted = [output["name"] for output in head.get("outputs", [])]
        parts = []
        for one in head["inputs"]:
            length = one["parameters"]["binary_data_size"]
            array = from_wire(body[at : at + length], one["datatype"], tuple(one["shape"]))
            at += length
            if wanted and one["name"] not in wanted:
                continue
            output = {"name": one["name"], "datatype": one["datatype"], "shape": one["shape"]}
            if head["parameters"].get("as_json"):
                output["data"] = _json_data(array)
            else:
                parts.append(bytes(to_wire(array, one["datatype"])))
                output["parameters"] = {"binary_data_size": len(parts[-1])}
            outputs.append(output)
        assert at == len(body)
        text = json.dumps({"model_name": "echo", "model_version": "1", "id": head.get("id", ""), "outputs": outputs})
        headers = {"Inference-Header-Content-Length": str(len(text))} if parts else {}
        data = text.encode() + b"".join(parts)
        if self.headers.get("Accept-Encoding") == "gzip":
            data = gzip.compress(data)
            headers["Content-Encoding"] = "gzip"
        if self.headers.get("Penstock-Timing") == "1":
            headers["Server-Timing"] = "queue;dur=1.5, compute;dur=2"
        self._send(200, data, headers)

    def _stream(self, body: dict[str, object]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        parameters = body.get("parameters")
        count = parameters["count"] if isinstance(parameters, dict) else 3
        for number in range(count):
            self._chunk(f'data: {{"text_output": "{body["text_input"]}{number}"}}\n\n'.encode())
        if body["text_input"] == "fail":
            self._chunk(b'data: {"error": "out of words"}\n\n')
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _json(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _json_data(array: Array) -> list[object]:
    flat: list[object] = array.ravel().tolist()
    return [item.decode() if isinstance(item, bytes) else item for item in flat]


def _statistics(name: str) -> dict[str, object]:
    tally = {"count": 3, "ns": 6_000_000}
    parts = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "name": name, "version": "1", "last_inference": 1700000000000, "inference_count": 12, "execution_count": 3,
        "inference_stats": dict.fromkeys(parts, tally),
        "batch_stats": [{"batch_size": 4, "compute_input": tally, "compute_infer": tally, "compute_output": tally}],
    }  # fmt: skip


@contextlib.contextmanager
def serving() -> Iterator[V2Server]:
    """A V2 server until the end of the block."""
    server = V2Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


Script = Callable[[socket.socket, bytes], None]


class Scripted:
    """A server that does with each connection, in turn, what its next script says; the last one is used again."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.seen: list[bytes] = []
        self.gone = threading.Event()  # a client closed before it was answered
        self._threads: list[threading.Thread] = []
        self._peers: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._accepting.join()
        for peer in self._peers:  # a client keeps its connections; their threads must not wait for it
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
            thread = threading.Thread(target=self._serve, args=(peer, script), daemon=True)
            self._threads.append(thread)
            self._peers.append(peer)
            thread.start()

    def _serve(self, peer: socket.socket, script: Script) -> None:
        with peer, contextlib.suppress(OSError):  # a client may hang up in the middle of a script
            while data := read_request(peer):
                self.seen.append(data)
                script(peer, data)
            self.gone.set()


def read_request(peer: socket.socket) -> bytes:
    """One whole request, or b"" when there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = peer.recv(65536)
        if not more:
            return b""
        data += more
    head, _, _ = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    whole = len(head) + 4 + (int(lengths[0]) if lengths else 0)
    while len(data) < whole:
        data += peer.recv(65536)
    return data


def answer(status: int, body: bytes = b"", *headers: str) -> Script:
    """Answers with a status and keeps the connection."""
    lines = [f"HTTP/1.1 {status} Reason", *headers, f"Content-Length: {len(body)}", "", ""]
    return lambda peer, _: peer.sendall("\r\n".join(lines).encode() + body)


def raw(data: bytes) -> Script:
    """Sends exactly this, and closes."""

    def script(peer: socket.socket, _: bytes) -> None:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_RDWR)

    return script


def hang_up(peer: socket.socket, _: bytes) -> None:
    """Closes without an answer."""
    peer.shutdown(socket.SHUT_RDWR)


def silent(peer: socket.socket, _: bytes) -> None:
    """Never answers."""


def ok_result(name: str = "y") -> Script:
    """A V2 answer with one number."""
    data = np.array([7.0], dtype="<f4").tobytes()
    output = {"name": name, "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"model_name": "m", "model_version": "1", "outputs": [output]}).encode()
    return answer(200, head + data, f"Inference-Header-Content-Length: {len(head)}")
