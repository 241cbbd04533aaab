"""Frames: whatever goes in comes out, and whatever is mutilated is a clean error."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.core.errors import Internal, PenstockError
from penstock.core.tensor import NUMPY_OF
from penstock.runtime.workers import frame
from penstock.runtime.workers.channel import INLINE_BYTES, Channel

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
numeric = st.sampled_from([dtype for dtype in NUMPY_OF.values() if dtype.kind != "O"]).flatmap(
    lambda dtype: hnp.arrays(dtype, shapes)
)


@st.composite
def texts(draw: st.DrawFn) -> np.ndarray:
    shape = draw(shapes)
    count = int(np.prod(shape))
    flat = np.empty(count, dtype=object)
    flat[:] = draw(st.lists(st.binary(max_size=20), min_size=count, max_size=count))
    return flat.reshape(shape)


tensors = st.dictionaries(st.text(max_size=8), numeric | texts(), max_size=4)
parameters = st.dictionaries(
    st.text(max_size=8), st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and bool(np.array_equal(left, right, equal_nan=left.dtype.kind == "f"))
    )


def across(sender: Channel, receiver: Channel, message: frame.Message, payload: frame.Payload) -> tuple:
    sender.send(message, 0, payload)
    received = receiver.receive()
    assert received is not None
    return received.message, received.payload


@settings(max_examples=150, deadline=None)
@given(tensors, parameters, st.integers(0, 3 * INLINE_BYTES))
def test_messages_and_tensors_come_out_as_they_went_in(
    inputs: dict[str, np.ndarray], values: dict, filling: int
) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    front, worker = Channel(left, front=True), Channel(right, front=False)
    try:
        inputs["filling"] = np.arange(filling, dtype="u1")
        payload = frame.pack((inputs,))
        sent = frame.Run(1, payload.heads, values, -1, float("inf"))
        got, data = across(front, worker, sent, payload)
        assert got == sent
        arrays = frame.unpack(got.tensors, data, owned=False)
        assert list(arrays) == list(inputs)
        assert all(same(arrays[name], inputs[name]) for name in inputs)
        answer = frame.pack((arrays,))
        got, data = across(worker, front, frame.Result(1, answer.heads, 0.0, 1.0), answer)
        arrays = frame.unpack(got.tensors, data, owned=True)
        assert all(same(arrays[name], inputs[name]) for name in inputs)
    finally:
        front.close()
        worker.close()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 3), hnp.array_shapes(max_dims=2))
def test_joined_parts_equal_their_concatenation(rows: list[int], pad: int, tail: tuple[int, ...]) -> None:
    rows[-1] = max(1, rows[-1])
    parts = [{"x": np.full((count, *tail), index, "i4")} for index, count in enumerate(rows)]
    payload = frame.pack(parts, pad)
    data = b"".join(chunk if isinstance(chunk, bytes) else chunk.tobytes() for chunk in payload.chunks)
    want = np.concatenate([part["x"] for part in parts] + [parts[-1]["x"][-1:]] * pad)
    assert same(frame.unpack(payload.heads, data, owned=True)["x"], want)


def whole_message() -> bytes:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(left, front=True)
    payload = frame.pack(({"x": np.arange(8, dtype="f4"), "t": np.array([b"ab", b""], dtype=object)},))
    channel.send(frame.Run(1, payload.heads, {"p": 1}, -1, 0.0), 0, payload)
    data = right.recv(1 << 16)
    channel.close()
    right.close()
    return data


MESSAGE = whole_message()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_mutilated_message_is_a_clean_error_or_a_wellformed_message(data: st.DataObject) -> None:
    mutilated = bytearray(MESSAGE)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(mutilated) - 1))
        mutilated[position] = data.draw(st.integers(0, 255))
    message = bytes(mutilated[: data.draw(st.integers(0, len(mutilated)))])
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(left, front=True)
    channel._open_slot(0)
    try:
        received = channel._parse(message)
        if isinstance(received.message, frame.Run):
            for array in frame.unpack(received.message.tensors, received.payload, owned=True).values():
                assert isinstance(array, np.ndarray)
    except PenstockError as error:
        assert isinstance(error, Internal)
    finally:
        channel.close()
        right.close()


@settings(max_examples=300, deadline=None)
@given(
    st.integers(-(2**63), 2**64 - 1), st.integers(-(2**63), 2**64 - 1),
    st.lists(st.integers(-(2**63), 2**64 - 1) | st.integers(0, 4), max_size=70),
    st.sampled_from(["<f4", "|b1", "BYTES", "|O", "<c8", "O", "<m8[s]"]) | st.text(max_size=4),
)  # fmt: skip
def test_no_head_reads_beyond_the_payload(offset: int, size: int, shape: list[int], dtype: str) -> None:
    head = frame.TensorHead("x", dtype, tuple(shape), offset, size)
    try:
        array = frame.unpack([head], bytes(64), owned=True)["x"]
    except Internal:
        return
    assert array.nbytes <= 64 or dtype == "BYTES"


def test_a_truncated_area_claim_is_refused() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(left, front=True)
    channel._open_slot(0)
    header = frame.encode(frame.End(1))
    for flags, header_bytes, size in ((1, len(header), 1 << 40), (2, 1 << 30, 0), (3, 100, 50), (3, 0, 0)):
        with pytest.raises(Internal):
            channel._parse(frame.prefix(flags, 0, header_bytes, size) + header)
    with pytest.raises(Internal, match="slot 9"):
        channel._parse(frame.prefix(1, 9, len(header), 64) + header)
    with pytest.raises(Internal, match="version"):
        channel._parse(b"\x02" + frame.prefix(0, 0, len(header), 0)[1:] + header)
    channel.close()
    right.close()
