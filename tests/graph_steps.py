"""A server for graphs to ask: it answers as each path says, and keeps what it was sent."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, bytes]


@dataclass
class Asked:
    """One request that came."""

    path: str
    headers: dict[str, str]
    body: bytes
    gone: bool = False  # the caller closed before the answer


@dataclass
class Steps:
    """`answers` maps a path to what is answered there: a status and body, or a function of the request's body."""

    url: str
    answers: dict[str, Reply | Callable[[bytes], Reply]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    delays_s: dict[str, float] = field(default_factory=dict)

    def at(self, path: str) -> list[Asked]:
        """The requests that came to a path."""
        return [each for each in self.asked if each.path == path]


@contextlib.contextmanager
def steps() -> Iterator[Steps]:
    """Such a server, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: apart, the second waits 40 ms for an acknowledgement

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            found.asked.append(asked)
            until = time.monotonic() + found.delays_s.get(self.path, 0.0)
            self.connection.setblocking(False)
            while time.monotonic() < until:
                with contextlib.suppress(BlockingIOError):
                    if self.connection.recv(1) == b"":
                        asked.gone = True
                        self.close_connection = True
                        return
                time.sleep(0.005)
            self.connection.setblocking(True)
            answer = found.answers.get(self.path, (404, b'{"error":"no such path"}'))
            status, content = answer(body) if callable(answer) else answer
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Steps(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def say(value: object, status: int = 200) -> Reply:
    """A JSON answer."""
    return status, json.dumps(value).encode()


@dataclass
class Answer:
    """What a server answered."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(url: str, body: object = None, method: str = "POST", headers: Mapping[str, str] | None = None) -> Answer:
    """One request: `body` as it is when it is bytes, else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if method == "POST" else None
    request = urllib.request.Request(url, data, dict(headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return Answer(answer.status, answer.read(), {n.lower(): v for n, v in answer.headers.items()})
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(), {n.lower(): v for n, v in error.headers.items()})
