"""Reading what a batch is made of: forms with a file, and lines."""

from __future__ import annotations

import json

import pytest

from penstock.core.errors import InvalidInput, NotFound, QuotaExceeded
from penstock.protocols.openai_http.multipart import read_form
from penstock.runtime.language.batch_lines import read_lines
from penstock.runtime.language.kept_files import KEEP_S, Bounds, KeptFiles
from penstock.runtime.language.shelves import MemoryShelf

FORM = (
    b'--b1\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b1\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\nContent-Type: x\r\n\r\n'
    b"one\r\n--b\r\ntwo\r\n--b1--\r\n"
)
TYPE = "multipart/form-data; boundary=b1"


def test_a_form_gives_its_members_byte_for_byte() -> None:
    form = read_form(FORM, TYPE)
    assert form["purpose"].content == b"batch" and form["purpose"].filename is None
    assert form["file"].content == b"one\r\n--b\r\ntwo" and form["file"].filename == "a.jsonl"
    assert read_form(FORM, 'multipart/form-data; charset=utf-8; boundary="b1"') == form


@pytest.mark.parametrize("length", range(len(FORM) - 4))
def test_a_form_that_is_cut_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput):
        read_form(FORM[:length], TYPE)


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", "multipart/form-data; boundary="])
def test_another_type_is_refused(kind: str) -> None:
    with pytest.raises(InvalidInput):
        read_form(FORM, kind)


def line(**members: object) -> bytes:
    return json.dumps({"custom_id": "a", "method": "POST", "url": "/x", "body": {}, **members}).encode()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "empty_file"), (b"\n \n", "empty_file"), (b"{", "invalid_json_line"), (b"[]", "invalid_request"),
        (b"\xff", "invalid_json_line"), (line(custom_id=""), "invalid_custom_id"), (line(method="GET"), "invalid_method"),
        (line(url="/y"), "mismatched_url"), (line(body=[]), "invalid_body"), (line(body="{"), "invalid_body"),
        (line() + b"\n" + line(), "duplicate_custom_id"),
    ],
)  # fmt: skip
def test_faults_of_lines(text: bytes, code: str) -> None:
    assert [fault.code for fault in read_lines(text, "/x")[1]] == [code]


async def test_finished_files_make_room_and_others_do_not() -> None:
    now = [0.0]
    files = KeptFiles(Bounds(caller_bytes=10), lambda: now[0], MemoryShelf())
    first = await files.add("a", "1", b"123456", "batch")
    with pytest.raises(QuotaExceeded):
        await files.add("a", "2", b"123456", "batch")
    files.hold("a", first.id)
    with pytest.raises(QuotaExceeded):
        await files.add("a", "2", b"123456", "batch")
    files.release(first.id)
    second = await files.add("a", "2", b"123456", "batch")
    with pytest.raises(NotFound):
        files.find("a", first.id)
    with pytest.raises(NotFound):
        files.find("b", second.id)
    now[0] = KEEP_S + 1
    assert files.of("a") == []
