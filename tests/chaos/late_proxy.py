"""A balancer as they are: it keeps connections open on both sides, and learns late which servers there are.

Run as a program, it prints its two addresses (HTTP, gRPC) and takes lines on standard input: `add HTTP GRPC` and
`remove HTTP GRPC`, each believed only after the given delay. HTTP requests are balanced one by one over kept
connections; what came over a connection for gRPC is passed on byte by byte to one server. A request is sent a second
time only where HTTP allows it: when no connection could be made, or when the connection was found closed before
anything was sent. POST is not idempotent (RFC 9110 9.2.2), so whatever fails later is answered with 502.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Message:
    """One request or answer, whole."""

    head: bytes
    body: bytes

    @property
    def closes(self) -> bool:
        return b"\r\nconnection: close" in self.head.lower()


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None when the connection ended before one began. Raises: IncompleteReadError in one."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    size = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            size = int(value)
        assert name.lower() != b"transfer-encoding", "this balancer passes no chunks on"
    return Message(head, await reader.readexactly(size))


class Proxy:
    def __init__(self, late_s: float) -> None:
        self._late_s = late_s
        self._servers: list[tuple[str, str]] = []  # HTTP and gRPC addresses, HOST:PORT
        self._turns = itertools.count()
        self._idle: dict[str, deque[Streams]] = defaultdict(deque)

    async def serve(self) -> None:
        http = await asyncio.start_server(self._http, "127.0.0.1", 0, limit=1 << 20, backlog=1024)
        grpc = await asyncio.start_server(self._grpc, "127.0.0.1", 0, backlog=1024)
        ports = [server.sockets[0].getsockname()[1] for server in (http, grpc)]
        print(f"http://127.0.0.1:{ports[0]} 127.0.0.1:{ports[1]}", flush=True)
        loop = asyncio.get_running_loop()
        lines = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := (await lines.readline()).decode():
            action, http_address, grpc_address = line.split()
            change = self._servers.append if action == "add" else self._servers.remove
            server = (http_address, grpc_address)
            if self._servers or action == "remove":
                loop.call_later(self._late_s, change, server)
            else:
                change(server)  # the first one: nobody waits yet
            print("heard", flush=True)

    def _places(self, kind: int) -> list[str]:
        """Where to try, in order."""
        first = next(self._turns)
        return [self._servers[(first + turn) % len(self._servers)][kind] for turn in range(len(self._servers))]

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (request := await read_message(reader)) is not None:
                answer = await self._forward(request)
                # The caller's connection stays open, whatever became of ours.
                head = b"\r\n".join(
                    line for line in answer.head.split(b"\r\n") if not line.lower().startswith(b"connection:")
                )
                writer.write(head + answer.body)
                await writer.drain()
                if request.closes:
                    break
        writer.close()

    async def _forward(self, request: Message) -> Message:
        why = "no server is known"
        # What is only read comes from one server, so that whoever reads counters twice reads the same ones.
        places = self._places(0) if request.head.startswith(b"POST") else [http for http, _ in self._servers]
        for place in places:
            try:
                streams = await self._connected(place)
            except OSError as error:
                why = f"{place}: {error}"
                continue  # nothing was sent
            reader, writer = streams
            try:
                writer.write(request.head + request.body)
                await writer.drain()
                answer = await read_message(reader)
                if answer is None:
                    raise ConnectionError("closed after the request was sent")
            except (OSError, asyncio.IncompleteReadError) as error:
                writer.close()
                why = f"{place}: {type(error).__name__} {error}"
                break  # it may have been worked on
            if answer.closes:
                writer.close()
            else:
                self._idle[place].append(streams)
            return answer
        body = why.encode()
        return Message(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    async def _connected(self, place: str) -> Streams:
        """A connection: a kept one that is still open, else a new one. Raises: OSError."""
        idle = self._idle[place]
        while idle:
            reader, writer = idle.pop()
            if not reader.at_eof() and not writer.is_closing() and reader.exception() is None:
                return reader, writer
            writer.close()
        host, _, port = place.partition(":")
        return await asyncio.open_connection(host, int(port), limit=1 << 20)

    async def _grpc(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for place in self._places(1):
            host, _, port = place.partition(":")
            try:
                their_reader, their_writer = await asyncio.open_connection(host, int(port))
            except OSError:
                continue
            await asyncio.gather(_copy(reader, their_writer), _copy(their_reader, writer))
            return
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


class LateProxy:
    """The balancer, in a process of its own."""

    def __init__(self, late_s: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(late_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.http, self.grpc = self._process.stdout.readline().split()

    def tell(self, action: str, http: str, grpc: str) -> None:
        """Returns when it has heard, not when it believes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(action, http.removeprefix("http://"), grpc, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "heard\n"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


if __name__ == "__main__":
    asyncio.run(Proxy(float(sys.argv[1])).serve())
