"""One end of the link between a front and a worker: a doorbell socket, and shared memory for what is large.

The socket is AF_UNIX SOCK_SEQPACKET: it keeps message boundaries and reports the peer's end. Every slot has one area
of shared memory for each direction. The front makes a slot's areas when it first uses the slot and sends their
descriptors along with that message; each area has one message at a time, because a slot has one owner at a time.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections import deque
from typing import NamedTuple, cast

from penstock.core.errors import Internal, Overloaded
from penstock.runtime.workers import frame
from penstock.runtime.workers.area import Area

# Up to here a message on the socket is as fast as shared memory (bench/worker_channel.py) and needs none; the kernel's
# default send buffer (208 KiB) holds several of them.
INLINE_BYTES = 16 << 10
_INLINE_HEADER_BYTES = 16 << 10
_MESSAGE_BYTES = INLINE_BYTES + _INLINE_HEADER_BYTES + 2 * frame.ALIGN  # the longest message on the socket
_MOST_BUFFERS = 1000  # Linux takes 1024 in one call (UIO_MAXIOV)
_NO_PAYLOAD = frame.Payload()


class Received(NamedTuple):
    """One message, its slot and its payload (a view that dies with the slot's next message when it is shared)."""

    message: frame.Message
    slot: int
    payload: frame.Buffer
    shared: bool


class Channel:
    """One end. The front's is non-blocking and keeps what the socket does not take; the worker's blocks."""

    def __init__(self, sock: socket.socket, *, front: bool) -> None:
        self.sock = sock
        self.outbox: deque[tuple[bytes, list[int]]] = deque()
        self._front = front
        self._areas: dict[int, tuple[Area, Area]] = {}  # slot -> outgoing, incoming
        self._ancillary = socket.CMSG_SPACE(2 * array.array("i").itemsize)
        self._used: dict[int, int] = {}  # slot -> bytes of its outgoing area in use, where large
        sock.setblocking(not front)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: frame.Message, slot: int = 0, payload: frame.Payload = _NO_PAYLOAD) -> None:
        """Sends one message. The payload's arrays are free again when this returns.

        Raises:
            InvalidInput: the message holds something that cannot be encoded.
            Overloaded: there is no more shared memory.
            OSError: the other side is gone (front), or memory or descriptors ran out.
        """
        header = frame.encode(message)
        if not self._front or slot in self._areas:
            self._send(header, slot, payload, [])
            return
        fds = self._open_slot(slot)
        try:
            self._send(header, slot, payload, fds)
        except BaseException:
            # The other side never heard of the areas: the next message on this slot must bring new ones.
            self._used.pop(slot, None)
            for area in self._areas.pop(slot):
                area.close()
            raise

    def _send(self, header: bytes, slot: int, payload: frame.Payload, fds: list[int]) -> None:
        flags = 0
        if len(header) > _INLINE_HEADER_BYTES:
            flags |= frame.HEADER_IN_AREA
        if payload.size > INLINE_BYTES:
            flags |= frame.PAYLOAD_IN_AREA
        if not flags:
            start = frame.prefix(0, slot, len(header), payload.size) + header
            if payload.size:
                self._post([start + frame.gap(len(start)), *payload.chunks], fds)
            else:
                self._post([start], fds)
            return
        outgoing = self._areas[slot][0]
        at = frame.aligned(len(header)) if flags & frame.HEADER_IN_AREA else 0
        total = at + payload.size if flags & frame.PAYLOAD_IN_AREA else at
        try:
            memory = outgoing.reserve(total)
        except OSError as error:
            raise Overloaded(f"no shared memory for a message of {total} bytes: {error.strerror}") from error
        if flags & frame.HEADER_IN_AREA:
            memory[: len(header)] = header
        if flags & frame.PAYLOAD_IN_AREA:
            for chunk in payload.chunks:
                size = len(chunk) if isinstance(chunk, bytes) else chunk.nbytes
                if size:
                    memory[at : at + size] = cast("bytes", chunk)  # takes any contiguous buffer
                at += size
        self._used[slot] = total
        start = frame.prefix(flags, slot, len(header), total if flags & frame.PAYLOAD_IN_AREA else payload.size) + (
            b"" if flags & frame.HEADER_IN_AREA else header
        )
        if flags & frame.PAYLOAD_IN_AREA or not payload.size:
            self._post([start], fds)
        else:
            self._post([start + frame.gap(len(start)), *payload.chunks], fds)

    def shares(self, message: frame.Message, payload: frame.Payload) -> bool:
        """Whether sending this would write into the slot's shared memory."""
        if payload.size > INLINE_BYTES:
            return True
        # A few short names make a short header, surely: it need not be encoded twice to know.
        longest = sum(4 * len(head.name) + 9 * len(head.shape) + 64 for head in payload.heads)
        return longest > _INLINE_HEADER_BYTES and len(frame.encode(message)) > _INLINE_HEADER_BYTES

    def receive(self, *, wait: bool = True) -> Received | None:
        """The next message; None when the other side is gone.

        Args:
            wait: whether a blocking socket waits for it.

        Raises:
            BlockingIOError: there is none now.
            Internal: the message is malformed.
        """
        if self._front:
            data = self.sock.recv(_MESSAGE_BYTES)
        else:
            flags = 0 if wait else socket.MSG_DONTWAIT
            data, ancillary, _, _ = self.sock.recvmsg(_MESSAGE_BYTES, self._ancillary, flags)
            if ancillary:
                self._accept_slot(data, ancillary)
        if not data:
            return None
        return self._parse(data)

    def flush(self) -> bool:
        """Sends what the socket did not take before; whether nothing is left. Raises: OSError."""
        while self.outbox:
            data, fds = self.outbox[0]
            try:
                self._write([data], fds)
            except BlockingIOError:
                return False
            self.outbox.popleft()
        return True

    def release(self, slot: int) -> None:
        """The message last sent on `slot` has been read: gives unusual amounts of memory back."""
        used = self._used.pop(slot, 0)
        if used:
            self._areas[slot][0].trim(used)

    def close(self) -> None:
        self.sock.close()
        self.outbox.clear()
        for pair in self._areas.values():
            for area in pair:
                area.close()
        self._areas.clear()
        self._used.clear()

    def _parse(self, data: bytes) -> Received:
        start = frame.parse_prefix(data)
        at = frame.PREFIX.size
        in_area: memoryview = memoryview(b"")
        if start.flags:
            pair = self._areas.get(start.slot)
            if pair is None:
                raise Internal(f"a message names slot {start.slot}, which is not open")
            skipped = frame.aligned(start.header_bytes) if start.flags & frame.HEADER_IN_AREA else 0
            claimed = start.size if start.flags & frame.PAYLOAD_IN_AREA else start.header_bytes
            if claimed < (start.header_bytes if skipped else 0):
                raise Internal("a message claims less shared memory than its header")
            in_area = pair[1].view(claimed)
        if start.flags & frame.HEADER_IN_AREA:
            # Copied: the other side could change it between the check and the use.
            header: frame.Buffer = bytes(in_area[: start.header_bytes])
        else:
            end = at + start.header_bytes
            if end > len(data):
                raise Internal(f"a message of {len(data)} bytes claims a header of {start.header_bytes}")
            header = memoryview(data)[at:end]
            at = end
        message = frame.decode(header)
        if start.flags & frame.PAYLOAD_IN_AREA:
            return Received(message, start.slot, in_area[skipped:], True)
        if not start.size:
            return Received(message, start.slot, b"", False)
        at = frame.aligned(at)
        if len(data) - at != start.size:
            raise Internal(f"a message claims a payload of {start.size} bytes and has {len(data) - at}")
        return Received(message, start.slot, memoryview(data)[at:], False)

    def _post(self, buffers: list[frame.Chunk], fds: list[int]) -> None:
        if self.outbox:
            self.outbox.append((_join(buffers), fds))
            return
        if len(buffers) > _MOST_BUFFERS:
            buffers = [_join(buffers)]
        try:
            self._write(buffers, fds)
        except BlockingIOError:
            self.outbox.append((_join(buffers), fds))

    def _write(self, buffers: list[frame.Chunk], fds: list[int]) -> None:
        if fds:
            self.sock.sendmsg(
                cast("list[bytes]", buffers), [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            )
        else:
            self.sock.sendmsg(cast("list[bytes]", buffers))

    def _open_slot(self, slot: int) -> list[int]:
        outgoing = Area.create(writable=True)
        try:
            incoming = Area.create(writable=False)
        except BaseException:
            outgoing.close()
            raise
        self._areas[slot] = (outgoing, incoming)
        return [outgoing.fd, incoming.fd]

    def _accept_slot(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        slot = frame.parse_prefix(data).slot
        if len(fds) != 2 or slot in self._areas:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
            raise Internal(f"slot {slot} came with {len(fds)} descriptors")
        # What is incoming here is outgoing there.
        incoming, outgoing = Area(fds[0], writable=False), Area(fds[1], writable=True)
        for fd in fds:
            os.set_inheritable(fd, False)
        self._areas[slot] = (outgoing, incoming)


def _join(buffers: list[frame.Chunk]) -> bytes:
    return b"".join(buffer if isinstance(buffer, bytes) else buffer.tobytes() for buffer in buffers)
