"""A small client of OpenAI's HTTP API over raw sockets: it notes what came when, and reads it afterwards.

On two cores the client takes its time from the server, so while tokens come it does nothing but wait, read and look at
the clock, without an event loop; all else is done afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

_BUFFER_BYTES = 1 << 20
_END = b"\r\n0\r\n\r\n"


@dataclass(slots=True)
class Answer:
    """What came of one request. Times are seconds from sending it; an answer in one piece has one time."""

    text: str = ""
    tokens: int = 0
    times_s: list[float] = field(default_factory=list)  # of each piece that brought text
    token_ids: list[int] = field(default_factory=list)  # where they were asked for

    @property
    def first_s(self) -> float:
        return self.times_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between two pieces."""
        return [after - before for before, after in itertools.pairwise(self.times_s)]


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask, and for what."""

    address: str  # host:port
    model: str
    extra: dict[str, object] = field(default_factory=dict)  # members of the body that this server needs besides
    headers: tuple[str, ...] = ()


class Exchange:
    """One connection; one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self.sock = socket.create_connection((host, port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = -1  # of the request under way
        self._sent = 0.0
        self._marks: list[tuple[float, int]] = []  # when how many bytes were there
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._size = 0
        self._length = -2  # of the whole answer; -1 when chunked, -2 while its head is not there yet

    def begin(self, number: int, request: bytes) -> None:
        self.number, self._size, self._length, self._marks = number, 0, -2, []
        self._sent = time.perf_counter()
        self.sock.sendall(request)

    def read(self, now: float) -> bool:
        """Takes in what has come; whether the answer is whole."""
        if self._size == len(self._buffer):
            self._view.release()
            self._buffer += bytes(len(self._buffer))
            self._view = memoryview(self._buffer)
        count = self.sock.recv_into(self._view[self._size :])
        if not count:
            return True
        self._size = size = self._size + count
        self._marks.append((now, size))
        if self._length == -2:
            head = self._buffer.find(b"\r\n\r\n", 0, size)
            if head < 0:
                return False
            self._length = _length(bytes(self._buffer[:head]))
        return size >= self._length if self._length >= 0 else self._buffer.endswith(_END, size - 7, size)

    def pieces(self) -> tuple[float, list[tuple[float, bytes]]]:
        """When the request was sent, and what came when."""
        at, found = 0, []
        for when, size in self._marks:
            found.append((when, bytes(self._buffer[at:size])))
            at = size
        return self._sent, found


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return len(head) + 4 + int(value)
    return -1


def ask_all(
    target: Target, bodies: Sequence[dict[str, object]], at_once: int, path: str = "/v1/chat/completions"
) -> tuple[float, list[Answer]]:
    """Asks all, `at_once` at a time, each as soon as another has ended. Seconds from the first to the last, answers.

    Raises: SystemExit when an answer is none.
    """
    host, _, port = target.address.rpartition(":")
    requests = []
    for body in bodies:
        data = json.dumps({"model": target.model, **body, **target.extra}).encode()
        lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *target.headers]
        requests.append("\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data)
    numbers = iter(range(len(requests)))
    found: list[tuple[float, list[tuple[float, bytes]]]] = [(0.0, [])] * len(requests)
    open_now: dict[int, Exchange] = {}
    with contextlib.ExitStack() as stack:
        ready = stack.enter_context(select.epoll())
        for _ in range(min(at_once, len(bodies))):
            exchange = Exchange(host, int(port))
            stack.enter_context(exchange.sock)
            open_now[exchange.sock.fileno()] = exchange
            ready.register(exchange.sock.fileno(), select.EPOLLIN)
        began = time.perf_counter()
        for exchange in open_now.values():
            number = next(numbers)
            exchange.begin(number, requests[number])
        while open_now:
            for descriptor, _ in ready.poll():
                exchange = open_now[descriptor]
                if not exchange.read(time.perf_counter()):
                    continue
                found[exchange.number] = exchange.pieces()
                number = next(numbers, -1)
                if number < 0:
                    ready.unregister(descriptor)
                    del open_now[descriptor]
                else:
                    exchange.begin(number, requests[number])
        wall_s = time.perf_counter() - began
    return wall_s, [read(sent, pieces) for sent, pieces in found]


def read(sent: float, pieces: Sequence[tuple[float, bytes]]) -> Answer:
    """The answer that pieces of HTTP hold. Raises: SystemExit when it is an error, or broken off."""
    whole = b"".join(piece for _, piece in pieces)
    head, _, rest = whole.partition(b"\r\n\r\n")
    if b" 200 " not in head[:16]:
        raise SystemExit(f"not answered: {whole[:500]!r}")
    ends = list(itertools.accumulate(len(piece) for _, piece in pieces))
    chunked = b"chunked" in head.lower()
    payload, places = _dechunked(rest, len(head) + 4) if chunked else (rest, [(0, len(head) + 4)])
    if b"text/event-stream" not in head.lower():
        answer = Answer()
        _add_whole(answer, json.loads(payload), pieces[-1][0] - sent)
        return answer
    answer = Answer()
    at = piece = place = 0
    for event in payload.split(b"\n\n"):
        at += len(event) + 2
        line = event.strip()
        if not line.startswith(b"data: {"):
            continue
        while place + 1 < len(places) and places[place + 1][0] < at:
            place += 1
        raw = places[place][1] + at - places[place][0]
        while piece + 1 < len(ends) and ends[piece] < raw:
            piece += 1
        _add_chunk(answer, json.loads(line[6:]), pieces[piece][0] - sent)
    # `transformers serve` sends no [DONE]; its last event says why the text ended.
    if b"data: [DONE]" not in payload and b'"finish_reason":"' not in payload[-600:]:
        raise SystemExit(f"the stream broke off: {payload[-300:]!r}")
    return answer


def _dechunked(rest: bytes, base: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The payload, and where its parts lay: (place in it, place in the whole answer)."""
    parts: list[bytes] = []
    places: list[tuple[int, int]] = []
    at = total = 0
    while True:
        end = rest.index(b"\r\n", at)
        size = int(rest[at:end].split(b";")[0], 16)
        if not size:
            return b"".join(parts), places
        places.append((total, base + end + 2))
        parts.append(rest[end + 2 : end + 2 + size])
        total += size
        at = end + 4 + size


def _add_chunk(answer: Answer, chunk: dict[str, object], at_s: float) -> None:
    _note_usage(answer, chunk)
    if "error" in chunk:
        raise SystemExit(f"the stream ended with an error: {chunk}")
    for choice in chunk.get("choices") or ():  # type: ignore[attr-defined]
        text = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
        if text:
            answer.text += text
            answer.times_s.append(at_s)
        _note_ids(answer, choice)


def _add_whole(answer: Answer, body: dict[str, object], at_s: float) -> None:
    _note_usage(answer, body)
    choice = body["choices"][0]  # type: ignore[index]
    answer.text = choice.get("text") if "text" in choice else choice["message"]["content"] or ""
    answer.times_s.append(at_s)
    _note_ids(answer, choice)


def _note_usage(answer: Answer, body: dict[str, object]) -> None:
    usage = body.get("usage")
    if isinstance(usage, dict):
        answer.tokens = usage["completion_tokens"]


def _note_ids(answer: Answer, choice: dict[str, object]) -> None:
    """Ids are written as `token_id:17` when they are asked for."""
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        for each in logprobs.get("content") or ():
            if each["token"].startswith("token_id:"):
                answer.token_ids.append(int(each["token"].removeprefix("token_id:")))
