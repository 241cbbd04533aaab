"""A small client of OpenAI's HTTP API over raw sockets: it notes what came when, and reads it afterwards.

On two cores the client takes its time from the server, so nothing is parsed while tokens come.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


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


class Exchange(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._pieces: list[tuple[float, bytes]] = []
        self._done: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._length = -2  # of the whole answer; -1 when chunked, -2 while its head is not there yet
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.perf_counter(), data))
        self._size += len(data)
        if self._length == -2:
            head, found, _ = b"".join(piece for _, piece in self._pieces).partition(b"\r\n\r\n")
            if not found:
                return
            self._length = _length(head)
        if self._size >= self._length if self._length >= 0 else self._tail().endswith(b"\r\n0\r\n\r\n"):
            self._finish()

    def _tail(self) -> bytes:
        last = self._pieces[-1][1]
        return last if len(last) >= 7 else b"".join(piece for _, piece in self._pieces[-7:])

    def connection_lost(self, error: Exception | None) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def ask(self, head: bytes, body: bytes) -> tuple[float, list[tuple[float, bytes]]]:
        """When it was sent, and the pieces of the answer."""
        assert self._transport is not None
        self._pieces, self._size, self._length = [], 0, -2
        self._done = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self._transport.write(head + body)
        await self._done
        return began, self._pieces

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return len(head) + 4 + int(value)
    return -1


async def ask_all(
    target: Target, bodies: Sequence[dict[str, object]], at_once: int, path: str = "/v1/chat/completions"
) -> tuple[float, list[Answer]]:
    """Asks all, `at_once` at a time, each as soon as another has ended. Seconds from the first to the last, answers.

    Raises: SystemExit when an answer is none.
    """
    host, _, port = target.address.rpartition(":")
    loop = asyncio.get_running_loop()
    exchanges = [(await loop.create_connection(Exchange, host, int(port)))[1] for _ in range(min(at_once, len(bodies)))]
    requests = []
    for body in bodies:
        data = json.dumps({"model": target.model, **body, **target.extra}).encode()
        lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *target.headers]
        requests.append(("\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode(), data))
    numbers = iter(range(len(requests)))
    found: list[tuple[float, list[tuple[float, bytes]]]] = [(0.0, [])] * len(requests)

    async def work(exchange: Exchange) -> None:
        for number in numbers:
            found[number] = await exchange.ask(*requests[number])

    began = time.perf_counter()
    await asyncio.gather(*map(work, exchanges))
    wall_s = time.perf_counter() - began
    for exchange in exchanges:
        exchange.close()
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
    if b"data: [DONE]" not in payload:
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
