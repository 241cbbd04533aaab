"""What crosses between a front and a worker, as bytes: typed headers in MessagePack and raw tensors. Pure.

Theory of operation. One message is

    prefix (16 bytes) | header (MessagePack) | padding | payload (the tensors, each on a 64-byte boundary)

and travels whole on the doorbell socket while it is small. A large payload lies in the slot's shared memory instead,
and so does a header too large for a datagram; the flags in the prefix say so. Neither side trusts the other's numbers:
sizes and offsets are checked against what was really received, so that a mutilated frame is an error, never a read
beyond an end. Nothing here is ever unpickled.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from penstock.core.errors import Internal, InvalidInput
from penstock.core.messages import Parameter
from penstock.core.servable import LoadContext, Signature, Tensors
from penstock.core.tensor import NUMPY_OF, Array, bytes_from_wire, bytes_to_wire, element_count, normal
from penstock.core.trace import RequestTrace

VERSION = 1  # another one whenever the messages below, or what they hold, change between releases
ALIGN = 64  # a cache line, and what vector instructions of any framework want
PREFIX = struct.Struct("<BBHIQ")  # version, flags, slot, header bytes, bytes of the area or of the inline payload
PAYLOAD_IN_AREA, HEADER_IN_AREA = 1, 2

Chunk = bytes | Array
Buffer = bytes | memoryview

MORE = -1  # in the place of a piece's count

_ZEROS = bytes(ALIGN)
_FIXED: dict[str, np.dtype[np.generic]] = {dtype.str: dtype for dtype in NUMPY_OF.values() if dtype.kind != "O"}
_BYTES = "BYTES"


class LoadSpec(msgspec.Struct, frozen=True):
    """What a worker process is to load, and how it is to behave."""

    adapter: str  # a plug's name, or "module:attribute"
    path: str
    context: LoadContext
    env: dict[str, str] = {}  # added to the child's environment
    heartbeat_s: float = 0.25
    memory_bytes: int | None = None  # what the process may hold
    python: str = ""  # the interpreter it runs in; "" is the server's own


class TensorHead(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where one tensor lies in the payload, and what it is: numpy's type string, or "BYTES" in V2's binary form."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Load(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """To the worker, first: load this."""

    spec: LoadSpec


class Run(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """To the worker: one batch, or one request to be answered with a stream."""

    id: int
    tensors: list[TensorHead]
    parameters: dict[str, Parameter]
    rows: int  # what axis 0 of every output must be; -1 when there is no such rule
    deadline: float  # seconds of the machine's monotonic clock, which all its processes share
    stream: bool = False
    borrow: bool = False  # compute with the borrowed threads too
    traces: tuple[RequestTrace, ...] = ()  # one byte when no request brought a trace context


class Credit(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """To the worker: how many items of a stream its reader has taken so far."""

    id: int
    taken: int


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """To the worker: nobody waits for this any more."""

    id: int


class Close(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """To the worker: finish what you hold, then end."""


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """To the front: ready."""

    signature: Signature


class LoadFailed(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """To the front: not loaded; the process ends."""

    message: str
    trace: str


class Result(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """To the front: a batch's outputs, and when the servable was entered and left."""

    id: int
    tensors: list[TensorHead]
    entered: float
    left: float


class Item(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """To the front: the next answer of a stream."""

    id: int
    tensors: list[TensorHead]


class End(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """To the front: the stream ended by itself, or as asked."""

    id: int


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """To the front: a batch or a stream ended with an error, named by its type in `core.errors`."""

    id: int
    kind: str
    message: str
    trace: str
    retry_after_s: float | None = None


class Pieces(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """To the front: what streams that pour have put out since the last one. Each entry has the stream, what the piece
    counts for (`MORE`: it goes on in the stream's next entry), and its bytes."""

    entries: list[tuple[int, int, bytes]]


Message = Load | Run | Credit | Cancel | Close | Loaded | LoadFailed | Result | Item | End | Failed | Pieces


@dataclass(slots=True)
class Payload:
    """Tensors ready to be sent: where each will lie, and the buffers to write one after the other."""

    heads: list[TensorHead] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True)
class Prefix:
    """The fixed start of a message, checked as far as it can be alone."""

    flags: int
    slot: int
    header_bytes: int
    size: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def pack(parts: Sequence[Tensors], pad_rows: int = 0) -> Payload:
    """The tensors of `parts`, joined along axis 0 (with the last row repeated `pad_rows` times), as buffers in order.

    No tensor is copied here unless its layout asks for it: the buffers are the caller's own arrays.
    """
    heads: list[TensorHead] = []
    chunks: list[Chunk] = []
    at = 0
    for name, first in parts[0].items():
        pieces = [first] if len(parts) == 1 else [part[name] for part in parts]
        if pad_rows:
            pieces.append(np.repeat(pieces[-1][-1:], pad_rows, axis=0))
        shape = first.shape
        if len(pieces) > 1:
            shape = (sum(piece.shape[0] for piece in pieces), *shape[1:])
        dtype = first.dtype.str
        gap = -at % ALIGN
        if gap:
            chunks.append(_ZEROS[:gap])
            at += gap
        start = at
        if dtype in _FIXED:
            for piece in pieces:
                chunks.append(piece if piece.flags.c_contiguous else np.ascontiguousarray(piece))
                at += piece.nbytes
        elif first.dtype.kind in "OSU":
            dtype = _BYTES
            for piece in pieces:
                wire = bytes_to_wire(piece)
                chunks.append(wire)
                at += len(wire)
        else:
            plain = [normal(piece) for piece in pieces]
            dtype = plain[0].dtype.str
            if dtype not in _FIXED:
                raise InvalidInput(f"tensor '{name}' is of numpy type {first.dtype}, which has no datatype")
            chunks.extend(plain)
            at += sum(piece.nbytes for piece in plain)
        heads.append(TensorHead(name, dtype, shape, start, at - start))
    return Payload(heads, chunks, at)


def unpack(heads: Sequence[TensorHead], payload: Buffer, *, owned: bool) -> dict[str, Array]:
    """The tensors that `heads` describe in `payload`: copies when `owned`, else read-only views (BYTES are copies).

    Raises:
        Internal: a head does not fit the payload.
    """
    size = len(payload)
    tensors: dict[str, Array] = {}
    for head in heads:
        if head.offset < 0 or head.size < 0 or head.offset + head.size > size:
            raise Internal(f"a tensor of {head.size} bytes at {head.offset} does not fit the {size} bytes received")
        try:
            tensors[head.name] = _tensor(head, payload, owned)
        except (InvalidInput, ValueError, OverflowError) as error:
            raise Internal(f"a tensor received from the other process is malformed: {error}") from None
    return tensors


def _tensor(head: TensorHead, payload: Buffer, owned: bool) -> Array:
    count = element_count(head.shape)
    if head.dtype == _BYTES:
        return bytes_from_wire(memoryview(payload)[head.offset : head.offset + head.size], count).reshape(head.shape)
    dtype = _FIXED.get(head.dtype)
    if dtype is None:
        raise ValueError(f"unknown type {head.dtype[:16]!r}")
    if count * dtype.itemsize != head.size:
        raise ValueError(f"{head.size} bytes for shape {list(head.shape)[:8]} of {head.dtype}")
    if not count:
        return np.empty(head.shape, dtype)
    array: Array = np.frombuffer(payload, dtype, count, head.offset).reshape(head.shape)
    return array.copy() if owned else array


def encode(message: Message) -> bytes:
    """The header of a message.

    Raises:
        InvalidInput: a parameter that MessagePack cannot carry.
    """
    try:
        return _encoder.encode(message)
    except (TypeError, OverflowError, ValueError) as error:
        raise InvalidInput(f"a parameter cannot be passed to the model: {error}") from None


def prefix(flags: int, slot: int, header_bytes: int, size: int) -> bytes:
    """The fixed start of a message."""
    return PREFIX.pack(VERSION, flags, slot, header_bytes, size)


def parse_prefix(data: Buffer) -> Prefix:
    """The checked start of a message.

    Raises:
        Internal: it is too short, of another version of this format, or promises more than there is.
    """
    if len(data) < PREFIX.size:
        raise Internal(f"a message of {len(data)} bytes is too short to be one")
    version, flags, slot, header_bytes, size = PREFIX.unpack_from(data)
    if version != VERSION:
        raise Internal(
            f"the other process speaks version {version} of the worker protocol, this one {VERSION}: the package was "
            "replaced under a running server; restart it"
        )
    if flags & ~(PAYLOAD_IN_AREA | HEADER_IN_AREA):
        raise Internal(f"unknown flags {flags} in a message")
    if size > sys.maxsize:
        raise Internal(f"a message claims {size} bytes")
    return Prefix(flags, slot, header_bytes, size)


def decode(header: Buffer) -> Message:
    """The message of a header.

    Raises:
        Internal: it is none.
    """
    try:
        message: Message = _decoder.decode(header)
        return message
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Internal(f"a message from the other process cannot be read: {error}") from None


def aligned(size: int) -> int:
    """`size` rounded up to the next boundary that a tensor may start on."""
    return size + -size % ALIGN


def gap(size: int) -> bytes:
    """The padding between something of `size` bytes and the next boundary."""
    return _ZEROS[: -size % ALIGN]


def parameters_of(parameters: Mapping[str, Parameter] | None) -> dict[str, Parameter]:
    """A plain dict of `parameters`, which may be missing."""
    return dict(parameters) if parameters else {}
