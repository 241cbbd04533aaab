"""What the client reads does not depend on how the network cut it; what it sends is what the server's side reads."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Generator
from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.client import calls, http1, retry, tensors
from penstock.client.calls import Call
from penstock.client.events import EventParser, read_stream
from penstock.client.http1 import ANY, ConnectionEnded
from penstock.client.tensors import Ask
from penstock.core.errors import Internal, NotReady, Overloaded, ServableError, WorkerLost
from penstock.core.tensor import datatype_of, from_wire


def run(reader: Generator[Any, Any, Any], pieces: list[bytes]) -> tuple[list[Any], Any]:
    """Feeds a reading generator with pieces as a network would; gives back what it gave out and its result."""
    buffer, given_out = bytearray(), []
    left = list(pieces)

    def enough(need: int | bytes) -> int | None:
        if isinstance(need, bytes):
            at = buffer.find(need)
            return at + len(need) if at >= 0 else None
        if need == ANY:
            return len(buffer) or (0 if not left else None)
        return need if len(buffer) >= need else None

    try:
        need = next(reader)
        while True:
            if not isinstance(need, int | bytes):
                given_out.append(need)
                need = next(reader)
                continue
            while (size := enough(need)) is None:
                if not left:
                    raise ConnectionEnded
                buffer += left.pop(0)
            data = bytes(buffer[:size])
            del buffer[:size]
            need = reader.send(data)
    except StopIteration as stop:
        return given_out, stop.value


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def framed(body: bytes, framing: str, chunks: list[int]) -> tuple[bytes, bytes]:
    if framing == "length":
        return b"Content-Length: %d" % len(body), body
    if framing == "close":
        return b"X-Close: 1", body
    out, at = b"", 0
    for size in chunks:
        piece = body[at : at + size]
        at += len(piece)
        if piece:
            out += b"%X;x=y\r\n%s\r\n" % (len(piece), piece)
    if body[at:]:
        out += b"%x\r\n%s\r\n" % (len(body[at:]), body[at:])
    return b"Transfer-Encoding: Chunked", out + b"0\r\nTrailer: 1\r\n\r\n"


framings = st.sampled_from(["length", "close", "chunked"])
sizes = st.lists(st.integers(1, 50), max_size=6)


@given(st.data(), st.binary(max_size=300), framings, sizes, st.sampled_from([None, "gzip", "deflate"]))
def test_an_answer_is_read_whole_however_it_is_cut(
    data: st.DataObject, body: bytes, framing: str, chunks: list[int], encoding: str | None
) -> None:
    wire_body = body
    lines = [b"HTTP/1.1 200 OK"]
    if encoding:
        squeeze = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
        wire_body = squeeze.compress(body) + squeeze.flush()
        lines.append(b"Content-Encoding: " + encoding.encode())
    header, wire_body = framed(wire_body, framing, chunks)
    wire = b"\r\n".join((*lines, header, b"", b"")) + wire_body
    _, reply = run(http1.read_reply("POST", 1 << 20), data.draw(cut(wire)))
    assert bytes(reply.body) == body
    assert reply.keep_alive == (framing != "close")


texts = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.data(), st.lists(texts, max_size=6), framings, sizes, st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_stream_gives_the_same_answers_however_it_is_cut(
    data: st.DataObject, said: list[str], framing: str, chunks: list[int], end: str
) -> None:
    events = b"".join(
        f": note{end}event: x{end}data: ".encode() + orjson.dumps({"t": text}) + (end * 2).encode() for text in said
    )
    # A CR may be half of a CRLF until the next byte comes; a comment brings it.
    header, body = framed(events + b":\n", framing, chunks)
    wire = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + header + b"\r\n\r\n" + body
    call: Call[Any] = calls.stream("m", {"x": 1}, "", {})
    answers, keep = run(read_stream(call, 1 << 20), data.draw(cut(wire)))
    assert [answer["t"] for answer in answers] == said
    assert keep == (framing != "close")


def test_a_data_of_several_lines_is_joined_and_an_error_is_raised() -> None:
    parser = EventParser(1000)
    assert parser.feed(b"data: a\ndata:b\n\nid: 3\n\n") == [b"a\nb"]
    reader = read_stream(calls.stream("m", {"x": 1}, "", {}), 1000)
    wire = b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {"error": "bad"}\n\ndata: [DONE]\n\n'
    try:
        run(reader, [wire])
    except ServableError as error:
        assert str(error) == "bad"
    else:
        raise AssertionError("no error")


arrays = hnp.arrays(
    st.sampled_from([np.dtype(name) for name in ("?", "u1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8")]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), arrays, min_size=1, max_size=4))
def test_arrays_are_sent_as_the_protocol_says_and_read_back_equal(inputs: dict[str, np.ndarray]) -> None:
    size, parts = tensors.encode(Ask("m", inputs, request_id="é"), None)
    body = b"".join(bytes(part) for part in parts)
    head = orjson.loads(body[:size])
    at = size
    for one, (name, array) in zip(head["inputs"], inputs.items(), strict=True):
        length = one["parameters"]["binary_data_size"]
        got = from_wire(body[at : at + length], one["datatype"], tuple(one["shape"]))
        assert (one["name"], one["datatype"]) == (name, datatype_of(array))
        np.testing.assert_array_equal(got, array)
        at += length
    assert at == len(body)
    answer = bytearray(orjson.dumps({"model_name": "m", "outputs": head["inputs"]}))
    length = len(answer)
    result = tensors.decode(answer + body[size:], {"inference-header-content-length": str(length)}, {})
    for name, array in inputs.items():
        np.testing.assert_array_equal(result[name], array)


values = (
    st.none() | st.booleans() | st.integers(-2, 5) | st.sampled_from(["x", "FP32", "BYTES", "BF16", "1"]) | st.floats()
)
keys = st.sampled_from(["outputs", "name", "datatype", "shape", "data", "parameters", "binary_data_size", "model_name"])
trees = st.recursive(
    values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5), max_leaves=12
)
outputs = st.fixed_dictionaries(
    {"name": st.just("y"), "datatype": st.sampled_from(["FP32", "BYTES", "BF16", "FP31"]),
     "shape": st.lists(st.integers(-1, 3), max_size=2) | trees},
    optional={"data": trees, "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9) | trees}) | trees},
)  # fmt: skip
answers = st.fixed_dictionaries({"outputs": st.lists(outputs, max_size=2)}) | trees


@settings(max_examples=300)
@given(answers, st.binary(max_size=12), st.integers(-3, 3))
def test_no_answer_makes_decoding_raise_anything_but_our_own_error(answer: object, tail: bytes, off: int) -> None:
    head = orjson.dumps(answer)
    with contextlib.suppress(Internal):
        tensors.decode(head + tail, {"inference-header-content-length": str(len(head) + off)}, {})
    with contextlib.suppress(Internal):
        tensors.decode(head + tail, {"inference-header-content-length": str(len(head))}, {})


retry_after = st.none() | st.floats(0, 100)


@given(st.integers(0, 9), st.integers(0, 9), st.floats(0, 1e4), st.booleans(), st.floats(0, 1), retry_after)
def test_a_retry_fits_the_deadline_and_is_never_of_what_may_have_had_an_effect(
    attempt: int, retries: int, remaining: float, sent: bool, chance: float, after: float | None
) -> None:
    for error in (Overloaded("", retry_after_s=after), NotReady(""), WorkerLost("", retry_after_s=after)):
        wait = retry.wait_s(error, attempt, retries, remaining, sent=sent, chance=chance)
        if wait is None:
            continue
        assert attempt < retries and 0 <= wait < remaining
        assert not isinstance(error, WorkerLost)
        if sent:
            assert error.retry_after_s is not None and wait >= error.retry_after_s
