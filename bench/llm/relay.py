"""What no server over HTTP can beat here: the engine's loop itself writes an event for each token, made beforehand, to
bare sockets. Nothing is parsed but the length of a body, nothing is made text, and no other process is woken.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections.abc import Callable
from typing import Any

# As long as what Penstock writes for a token of five letters.
_HEAD = b'{"id":"chatcmpl-%b","object":"chat.completion.chunk","created":1700000000,"model":"openvino",' % (b"0" * 32)
_TOKEN = (
    b'data: %b"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n' % _HEAD
)
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Relay:
    """Listens on a port of this machine. `add` begins a generation of so many tokens after these ids."""

    def __init__(self, add: Callable[[list[int], int], Any], step: Callable[[], None]) -> None:
        self._add = add
        self._step = step
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self.port = self._listening.getsockname()[1]
        self._ready = select.epoll()
        self._ready.register(self._listening.fileno(), select.EPOLLIN)
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}
        self._token = _chunk(_TOKEN)

    def serve(self, requests: int) -> None:
        """Returns when so many have been answered."""
        running: list[list[Any]] = []  # socket, handle, tokens left, tokens asked for
        while requests:
            for descriptor, _ in self._ready.poll(0 if running else None):
                self._take(descriptor, running)
            if not running:
                continue
            self._step()
            for one in running:
                sock, handle, _, _ = one
                while handle.can_read():
                    for output in handle.read().values():
                        count = len(output.generated_ids)
                        head = _ANSWER if one[2] == one[3] else b""
                        one[2] -= count
                        sock.sendall(head + self._token * count + (self._last(one[3]) if one[2] <= 0 else b""))
            left = [one for one in running if one[2] > 0]
            requests -= len(running) - len(left)
            running = left

    def _last(self, tokens: int) -> bytes:
        usage = b'data: {"choices":[],"usage":{"completion_tokens":%d}}\n\n' % tokens
        return _chunk(usage) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    def _take(self, descriptor: int, running: list[list[Any]]) -> None:
        if descriptor == self._listening.fileno():
            with contextlib.suppress(BlockingIOError):
                sock, _ = self._listening.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._clients[sock.fileno()] = sock, bytearray()
                self._ready.register(sock.fileno(), select.EPOLLIN)
            return
        sock, received = self._clients[descriptor]
        data = sock.recv(1 << 16)
        if not data:
            self._ready.unregister(descriptor)
            del self._clients[descriptor]
            sock.close()
            return
        received += data
        head, found, body = bytes(received).partition(b"\r\n\r\n")
        if found and len(body) >= int(head.rpartition(b"Content-Length: ")[2]):
            asked = json.loads(body)
            received.clear()
            running.append(
                [sock, self._add(asked["prompt"], asked["max_tokens"]), asked["max_tokens"], asked["max_tokens"]]
            )
