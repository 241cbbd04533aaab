"""Heads of requests and answers: what is understood, what is refused, and what is written anew for the other side.

The corpus of requests that two parsers might understand differently follows RFC 9112, section 11.2, and the families of
"HTTP Desync Attacks" (Kettle, 2019) and "HTTP Garden" (2024): each is refused, or reaches a replica in one plain form.
"""

from __future__ import annotations

import pytest

from penstock.core.errors import Internal
from penstock.fleet.router.answer_head import AnswerReader
from penstock.fleet.router.chunked import Chunked, chunk
from penstock.fleet.router.request_head import Head, HeadReader, HeadRefused

START = b"POST /v2/models/a/infer HTTP/1.1\r\nHost: a\r\n"


def read(data: bytes) -> Head:
    return HeadReader(64 << 10, 100).read(data)


def refused(data: bytes) -> int:
    with pytest.raises(HeadRefused) as caught:
        read(data)
    return caught.value.status


SMUGGLING = {
    "both framings": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    "both framings, other order": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 4\r\n",
    "two equal lengths": b"Content-Length: 3\r\nContent-Length: 3\r\n",
    "lengths in a list": b"Content-Length: 3, 3\r\n",
    "signed length": b"Content-Length: +3\r\n",
    "negative length": b"Content-Length: -1\r\n",
    "hexadecimal length": b"Content-Length: 0x3\r\n",
    "length with underscore": b"Content-Length: 1_0\r\n",
    "length with text": b"Content-Length: 3 bytes\r\n",
    "length of other digits": "Content-Length: ３\r\n".encode(),
    "empty length": b"Content-Length: \r\n",
    "endless length": b"Content-Length: " + b"9" * 40 + b"\r\n",
    "space before the colon": b"Transfer-Encoding : chunked\r\n",
    "tab before the colon": b"Transfer-Encoding\t: chunked\r\n",
    "space before the name": b" Transfer-Encoding: chunked\r\n",
    "folded header": b"X: a\r\n Transfer-Encoding: chunked\r\n",
    "folded value": b"Transfer-Encoding:\r\n chunked\r\n",
    "vertical tab": b"Transfer-Encoding: \x0bchunked\r\n",
    "two codings": b"Transfer-Encoding: gzip, chunked\r\n",
    "coding twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "coding twice, one odd": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n",
    "coding in quotes": b'Transfer-Encoding: "chunked"\r\n',
    "coding with parameter": b"Transfer-Encoding: chunked;q=1\r\n",
    "identity coding": b"Transfer-Encoding: identity\r\n",
    "almost chunked": b"Transfer-Encoding: xchunked\r\n",
    "empty coding": b"Transfer-Encoding: \r\n",
    "bare line feed": b"X: a\nTransfer-Encoding: chunked\r\n",
    "bare carriage return": b"X: a\rTransfer-Encoding: chunked\r\n",
    "null in a value": b"X: a\0b\r\n",
    "null in a name": b"X\0: a\r\n",
    "control in a value": b"X: a\x01b\r\n",
    "no colon": b"Transfer-Encoding chunked\r\n",
    "empty name": b": chunked\r\n",
    "odd character in a name": b"Transfer(Encoding: chunked\r\n",
    "two hosts": b"Host: b\r\n",
    "unknown expectation": b"Expect: 200-maybe\r\n",
}


@pytest.mark.parametrize("lines", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_a_head_that_could_be_read_in_two_ways_is_refused(lines: bytes) -> None:
    assert refused(START + lines + b"\r\n") in (400, 417, 501)


@pytest.mark.parametrize(
    "first",
    [
        b"POST /a HTTP/1.1 HTTP/1.1", b"POST  /a HTTP/1.1", b"POST /a b HTTP/1.1", b"POST\t/a HTTP/1.1", b"POST /a",
        b" POST /a HTTP/1.1", b"POST /a HTTP/1.1 ", b"POST /a HTTP/2.0", b"POST /a HTTP/0.9", b"POST /a HTTP/1.2",
        b"POST /a http/1.1", b"P\x00ST /a HTTP/1.1", b"POST /\x80 HTTP/1.1", b"POST a HTTP/1.1", b"CONNECT a:1 HTTP/1.1",
        b"GET http://a@b/ HTTP/1.1", b"GET ftp://a/ HTTP/1.1", b"SPELL /a HTTP/1.1", b"GET /a#b HTTP/1.1",
        b"GET http://a/b#c HTTP/1.1", b"GET /a?b#c HTTP/1.1",
    ],
)  # fmt: skip
def test_a_request_line_out_of_form_is_refused(first: bytes) -> None:
    assert refused(first + b"\r\nHost: a\r\n\r\n") in (400, 405, 505)


@pytest.mark.parametrize("lines", [b"", b"Host: a\r\nHost: a\r\n", b"Host: a b\r\n", b"Host: a/b\r\n"])
def test_exactly_one_host_is_needed(lines: bytes) -> None:
    assert refused(b"GET / HTTP/1.1\r\n" + lines + b"\r\n") == 400


def test_old_versions_have_no_chunks() -> None:
    assert refused(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n") == 400
    head = read(b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\n")
    assert head.http10 and not head.keep_alive and head.host == b""


def test_the_target_in_absolute_form_says_the_host() -> None:
    head = read(b"GET HTTP://other:81/a?b=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (head.target, head.host, head.path) == (b"/a?b=1", b"other:81", "/a")
    assert head.onward().startswith(b"GET /a?b=1 HTTP/1.1\r\nHost: other:81\r\n")


def test_hop_headers_and_those_that_connection_names_stay_here() -> None:
    head = read(
        START + b"Connection: keep-alive, X-Secret , close\r\nx-secret: 1\r\nKeep-Alive: 1\r\nTE: a\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: x\r\nTrailer: a\r\nProxy-Authorization: b\r\nX-Kept: \xff\r\nX-Kept: 2\r\nContent-Length: 5\r\n\r\n"
    )
    assert head.onward() == START + b"x-kept: \xff\r\nx-kept: 2\r\n"
    assert head.onward(frozenset((b"x-kept",))) == START


def test_a_connection_header_cannot_take_the_framing_away() -> None:
    head = read(START + b"Connection: content-length, host, transfer-encoding\r\nContent-Length: 5\r\n\r\n")
    assert head.length == 5 and b"Host: a\r\n" in head.onward()


def test_limits_of_a_head() -> None:
    reader = HeadReader(300, 3)
    with pytest.raises(HeadRefused, match="300 bytes"):
        reader.read(START + b"X: " + b"x" * 300 + b"\r\n\r\n")
    with pytest.raises(HeadRefused, match="3 headers"):
        reader.read(START + b"X: 1\r\n" * 3 + b"\r\n")


def test_heads_are_kept_by_their_bytes_alone() -> None:
    reader = HeadReader(64 << 10, 100)
    first = reader.read(START + b"\r\n")
    assert reader.read(START + b"\r\n") is first
    assert reader.read(START + b"X: 1\r\n\r\n") is not first
    for number in range(5000):
        reader.read(START + b"X: %d\r\n\r\n" % number)
    assert len(reader._kept) <= 512


@pytest.mark.parametrize(
    "body",
    [
        b"0x3\r\nabc\r\n0\r\n\r\n", b"+3\r\nabc\r\n0\r\n\r\n", b"-1\r\n", b" 3\r\nabc\r\n", b"3 \r\nabc\r\n0\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n", b"3\r\nabc\n0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"3\r\nabc0\r\n\r\n", b"\r\n",
        b"g\r\n", b"3;a\rb\r\nabc\r\n", b"3;a\0\r\nabc\r\n", b"1" * 16 + b"\r\n", b"0\r\nno trailer\r\n\r\n",
        b"0\r\n folded: 1\r\n\r\n", b"0\r\nX: 1\n\r\n", b"3;" + b"x" * 5000 + b"\r\nabc\r\n", b"3_0\r\n",
        b"1;" + b"x" * 4000 + b"\r\na\r\n",
    ],
)  # fmt: skip
def test_chunks_out_of_form_are_refused(body: bytes) -> None:
    from penstock.core.errors import InvalidInput

    framing = body * 20 if body.startswith(b"1;") else body  # each in bounds, all together mostly framing
    for size in (1, 7, len(framing)):
        chunked = Chunked()
        with pytest.raises(InvalidInput):
            for place in range(0, len(framing), size):
                chunked.feed(framing[place : place + size])
            if not chunked.done:
                raise AssertionError("nothing wrong was found")


def test_chunks_in_form_are_read_up_to_their_end() -> None:
    data = b'3;a="b"\r\nabc\r\n00A\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\nGET /next'
    chunked = Chunked()
    assert chunked.feed(data) == ([b"abc", b"0123456789"], len(data) - len(b"GET /next"))
    assert chunked.done
    assert chunk([b"ab", b"c"]) == b"3\r\nabc\r\n" and chunk([b""]) == b""


def test_an_answers_head_loses_what_is_not_for_the_caller() -> None:
    head = AnswerReader().read(
        b"HTTP/1.1 503 Service Unavailable\r\nDate: x\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nContent-Length: 7\r\n"
        b"Penstock-Error: Overloaded\r\nPenstock-Revision: 99\r\nPenstock-Decision: forged\r\nRetry-After: 1\r\n\r\n"
    )
    assert (head.status, head.length, head.error, head.keep_alive) == (503, 7, b"Overloaded", True)
    assert head.start == (
        b"HTTP/1.1 503 Service Unavailable\r\nDate: x\r\nPenstock-Error: Overloaded\r\nRetry-After: 1\r\n"
    )


@pytest.mark.parametrize(
    "data",
    [b"HTTP/1.1 20 OK\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 200 OK\r\nX : 1\r\n\r\n", b"HTTP/1.1 999 X\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", b"HTTP/1.1 200 OK\nX: 1\r\n\r\n", b"HTTP/1.1  200 OK\r\n\r\n"],
)  # fmt: skip
def test_an_answers_head_out_of_form_is_refused(data: bytes) -> None:
    with pytest.raises(Internal):
        AnswerReader().read(data)
