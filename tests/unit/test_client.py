from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest

import penstock
from penstock.client import calls, http1, retry, tensors
from penstock.client.events import EventParser
from penstock.client.http1 import Reply
from penstock.client.options import parse_url
from penstock.core.errors import Internal, InvalidInput, NotFound, TooLarge


@pytest.mark.parametrize(
    ("url", "authority", "prefix", "secure"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", "", False),
        ("https://models.example/base/", "models.example", "/base", True),
        ("localhost:9000", "localhost:9000", "", False),
        ("http://[::1]:80", "[::1]", "", False),
    ],
)
def test_a_url_names_an_address(url: str, authority: str, prefix: str, secure: bool) -> None:
    address = parse_url(url)
    assert (address.authority, address.prefix, address.secure) == (authority, prefix, secure)


@pytest.mark.parametrize("url", ["", "ftp://a", "http://", "http://a:b", "http://a?x", "http://u:p@a", "http://a/b c"])
def test_a_url_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="URL"):
        parse_url(url)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"retries": -1},
        {"compression": "br"},
        {"headers": {"X": "a\r\nY: b"}},
        {"headers": {"X: Y": "a"}},
        {"api_key": "a\nb"},
    ],
)
def test_an_option_that_cannot_work_is_refused_at_once(options: dict[str, object]) -> None:
    for kind in (penstock.Client, penstock.AsyncClient):
        with pytest.raises(InvalidInput):
            kind("http://127.0.0.1:1", **options)  # type: ignore[arg-type]  # wrong on purpose


def test_names_cannot_leave_their_place_in_a_path() -> None:
    assert calls.model_path("../x?y#z", "1/2") == "/v2/models/..%2Fx%3Fy%23z/versions/1%2F2"
    with pytest.raises(InvalidInput):
        calls.model_path("", "")


def test_small_requests_are_one_buffer_and_large_tensors_are_not_copied() -> None:
    address = parse_url("http://a")
    (whole,) = http1.request(address, "POST", "/p", {"K": "v"}, [b"ab", b"cd"])
    assert whole == b"POST /p HTTP/1.1\r\nHost: a\r\nK: v\r\nContent-Length: 4\r\n\r\nabcd"
    large = memoryview(bytes(1 << 20))
    first, second = http1.request(address, "POST", "/p", {}, [b"{}", large])
    assert bytes(first).endswith(b"\r\n\r\n{}")
    assert second is large


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("Tue, 24 Nov 2026 06:00:10 GMT", 10.0), ("Tue, 24 Nov 2020 06:00:10 GMT", 0.0),
     ("", None), ("soon", None), ("-1", None), ("inf", None), ("nan", None)],
)  # fmt: skip
def test_retry_after_is_read_in_both_forms(value: str, seconds: float | None) -> None:
    assert retry.retry_after_s(value, datetime(2026, 11, 24, 6, tzinfo=UTC)) == seconds


def test_server_timing_is_read_in_seconds_and_what_is_odd_is_left_out() -> None:
    assert tensors.server_timing('queue;dur=1.5, hit, db;desc="a";dur="2", bad;dur=x') == {"queue": 0.0015, "db": 0.002}


def test_values_that_would_be_changed_are_not_cast() -> None:
    for value, datatype in ((-1, "UINT8"), (1.5, "INT32"), (2, "BOOL"), (float("nan"), "INT64")):
        with pytest.raises(InvalidInput, match="do not fit"):
            tensors.encode(tensors.Ask("m", {"x": [value]}, datatypes={"x": datatype}), None)
    tensors.encode(tensors.Ask("m", {"x": [1.0, 0.0]}, datatypes={"x": "BOOL"}), None)


def test_outputs_must_fill_the_body() -> None:
    head = b'{"model_name": "m", "outputs": []}'
    with pytest.raises(Internal, match="outputs of 34 bytes in a body of 36"):
        tensors.decode(head + b"xx", {"inference-header-content-length": "34"}, {})


def test_a_ready_answer_may_be_empty_or_say_so() -> None:
    read = calls.ready("", "").read
    assert read(Reply(200, {}, b"", True))
    assert read(Reply(200, {}, b'{"ready": true}', True))
    assert not read(Reply(200, {}, b'{"ready": false}', True))
    assert not read(Reply(503, {}, b'{"error": "starting"}', True))


def test_an_unknown_model_is_not_ready_but_an_unknown_protocol_is_an_error() -> None:
    unknown = Reply(404, {}, b'{"error": "no model"}', True)
    assert calls.ready("m", "").read(unknown) is False
    with pytest.raises(NotFound):
        calls.ready("", "").read(unknown)


def test_statistics_in_foreign_forms_are_read_or_refused_clearly() -> None:
    read = calls.statistics("", "").read
    (one,) = read(Reply(200, {}, b'{"model_stats": [{"name": "m", "inference_stats": null}]}', True))
    assert (one.name, one.success.count) == ("m", 0)
    for body in (b'{"model_stats": [5]}', b'{"model_stats": 5}', b'{"model_stats": [{"name": "m", "batch_stats": 5}]}'):
        with pytest.raises(Internal, match="statistics cannot be read"):
            read(Reply(200, {}, body, True))


def test_importing_the_client_brings_no_runtime_no_asyncio_and_takes_little_time() -> None:
    code = (
        "import numpy, sys, time; t = time.process_time(); import penstock.client; t = time.process_time() - t; "
        "print(t, *sorted(m for m in sys.modules if m in ('asyncio', 'ssl', 'onnxruntime', 'grpc') or "
        "m.startswith(('penstock.runtime', 'penstock.protocols', 'penstock.telemetry'))))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert all(run[1:] == [] for run in runs)
    assert min(float(run[0]) for run in runs) < 0.06


def test_a_result_is_a_mapping() -> None:
    result = tensors.Result("m", "1", {"y": np.zeros(1)})
    assert dict(result) == result.outputs and "y" in result and len(result) == 1


def test_an_event_of_empty_lines_without_end_is_given_up() -> None:
    parser = EventParser(1000)
    with pytest.raises(TooLarge):
        for _ in range(1001):
            parser.feed(b"data:\n")


@pytest.mark.parametrize("said", ["[" * 600 + "]" * 600, '{"a":' * 500 + "1" + "}" * 500])
def test_an_error_nested_beyond_what_can_be_written_is_still_an_error(said: str) -> None:
    reply = Reply(400, {}, b'{"error": %b}' % said.encode(), True)
    assert isinstance(calls.error_of(reply), InvalidInput)


def test_metrics_that_are_no_text_are_the_servers_fault() -> None:
    with pytest.raises(Internal, match="no text"):
        calls.metrics().read(Reply(200, {}, b"\xff", True))


@pytest.mark.parametrize(
    "value",
    ["Wed, 21 Oct 99999999999999999999 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 +99999999999999999999", "1e999", "x"],
)
def test_a_time_to_come_back_that_no_calendar_has_is_none(value: str) -> None:
    assert retry.retry_after_s(value, datetime.now(UTC)) is None
