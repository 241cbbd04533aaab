from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from penstock.core.errors import InvalidInput, Unsupported
from penstock.telemetry import logs

log = logging.getLogger("penstock.test")


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root, own, access = logging.getLogger(), logging.getLogger("penstock"), logging.getLogger(logs.ACCESS)
    before = (root.level, own.level, access.level)
    yield io.StringIO()
    root.handlers[:] = [handler for handler in root.handlers if type(handler).__module__ != logs.__name__]
    root.setLevel(before[0])
    own.setLevel(before[1])
    access.setLevel(before[2])


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_json_line_has_time_level_event_and_fields(out: io.StringIO) -> None:
    logs.configure("json", stream=out)
    log.info("version_ready", extra={"model": "iris", "version": 3, "seconds": 0.25})
    (line,) = lines(out)
    assert list(line) == ["time", "level", "logger", "event", "model", "version", "seconds"]
    assert (line["level"], line["event"], line["model"], line["version"]) == ("info", "version_ready", "iris", 3)
    when = datetime.fromisoformat(str(line["time"]))
    assert when.utcoffset() == timedelta(0)
    assert abs((datetime.now(when.tzinfo) - when).total_seconds()) < 60


def test_without_a_terminal_auto_is_json_and_a_forced_text_has_no_colour(out: io.StringIO) -> None:
    handle = logs.configure("auto", stream=out)
    log.warning("full")
    assert lines(out)[0]["event"] == "full"
    handle.set_format("text")
    log.warning("full", extra={"model": "iris", "note": "two words"})
    last = out.getvalue().splitlines()[-1]
    assert last.endswith('warning  full model=iris note="two words"')
    assert "\x1b" not in last


def test_a_terminal_gets_colour() -> None:
    record = logging.LogRecord("penstock", logging.ERROR, "", 0, "broken", (), None)
    assert "\x1b[31merror" in logs.TextFormatter(colour=True).format(record)


def test_an_exception_is_a_field_with_its_traceback(out: io.StringIO) -> None:
    logs.configure("json", stream=out)
    try:
        raise ValueError("no such column")
    except ValueError:
        log.exception("predict_failed", extra={"model": "iris"})
    (line,) = lines(out)
    failure = str(line["exception"])
    assert failure.startswith("Traceback (most recent call last)")
    assert failure.endswith("ValueError: no such column")


def test_fields_and_tracebacks_are_bounded(out: io.StringIO) -> None:
    logs.configure("json", stream=out)
    try:
        raise ValueError("x" * 1_000_000)
    except ValueError:
        log.exception("y" * 1_000_000, extra={"big": "z" * 1_000_000, "raw": b"\xff" * 1_000_000, "huge": 10**400})
    assert len(out.getvalue()) < 40_000
    (line,) = lines(out)
    assert str(line["big"]).endswith("… (998000 more)")


def test_no_text_can_forge_a_line_or_drive_a_terminal(out: io.StringIO) -> None:
    logs.configure("text", stream=out)
    evil = "a\n2026-01-01 error    forged\x1b[2J\x9b2J\r\u2028"
    try:
        raise ValueError(evil)
    except ValueError:
        log.exception("event %s", evil, extra={"model": evil})
    text = out.getvalue()
    assert all(line.startswith("    ") for line in text.splitlines()[1:])
    assert not set(text) & set("\x1b\x9b\r\u2028")


def test_secrets_are_never_written(out: io.StringIO) -> None:
    logs.configure("json", stream=out)
    log.info("call", extra={"Authorization": "Bearer abc", "api_key": "abc", "user": "me"})
    assert "abc" not in out.getvalue()
    assert lines(out)[0]["user"] == "me"


@pytest.mark.parametrize("value", [float("nan"), "\ud800", {1: object()}, object(), b"\x00\xff", 2**80, None, [1, "a"]])
@pytest.mark.parametrize("format", ["json", "text"])
def test_any_value_can_be_a_field(out: io.StringIO, value: object, format: str) -> None:
    logs.configure(format, stream=out)
    log.info("odd", extra={"value": value})
    assert out.getvalue().count("\n") == 1
    assert "odd" in out.getvalue() and "unreadable" not in out.getvalue()


def test_a_field_cannot_replace_the_lines_own(out: io.StringIO) -> None:
    logs.configure("json", stream=out)
    log.info("real", extra={"event": "fake", "time": "never"})
    (line,) = lines(out)
    assert (line["event"], line["event_"], line["time_"]) == ("real", "fake", "never")


def test_a_line_that_cannot_be_made_leaves_a_trace_and_raises_nothing(out: io.StringIO) -> None:
    handle = logs.configure("json", stream=out)
    logging.getLogger().handlers[:] = [handle.handler]  # pytest's own raises what a server's must swallow
    log.info("rows %d", "many")
    assert out.getvalue().startswith("unreadable log line from penstock.test")


def test_bound_fields_are_on_every_line_inside_and_stay_in_their_task(out: io.StringIO) -> None:
    logs.configure("json", stream=out)

    async def work(name: str) -> None:
        with logs.bind(model=name):
            await asyncio.sleep(0)
            with logs.bind(request_id="r"):
                await asyncio.sleep(0)
                log.info("inner", extra={"task": name})
            log.info("outer", extra={"task": name})

    async def both() -> None:
        await asyncio.gather(work("a"), work("b"))

    asyncio.run(both())
    log.info("after")
    *inside, after = lines(out)
    assert len(inside) == 4 and all(line["model"] == line["task"] for line in inside)
    assert all(("request_id" in line) == (line["event"] == "inner") for line in inside)
    assert "model" not in after


def test_third_parties_speak_from_warning_on(out: io.StringIO) -> None:
    logs.configure("json", "debug", stream=out)
    other = logging.getLogger("someone.else")
    other.info("chatter")
    other.warning("trouble")
    log.debug("ours")
    assert [line["event"] for line in lines(out)] == ["trouble", "ours"]


def test_configuring_again_replaces_and_does_not_double(out: io.StringIO) -> None:
    logs.configure("json", stream=io.StringIO())
    logs.configure("json", stream=out)
    log.info("once")
    assert len(lines(out)) == 1


def test_access_lines_are_off_unless_asked_for(out: io.StringIO) -> None:
    handle = logs.configure("json", "debug", stream=out)
    access = logging.getLogger(logs.ACCESS)
    assert not access.isEnabledFor(logging.INFO)
    access.info("request")
    handle.set_access(True)
    access.info("request")
    assert len(lines(out)) == 1


def test_v2_settings_change_what_is_logged_from_the_next_line_on(out: io.StringIO) -> None:
    handle = logs.configure("json", "info", stream=out)
    assert handle.settings() == {
        "log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0,
        "log_format": "json",
    }  # fmt: skip
    log.debug("debug0")
    handle.update({"log_verbose_level": 1, "log_info": False, "log_warning": False})
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)(f"{level}1")
    handle.update({"log_error": False, "log_verbose_level": 0, "log_warning": True})
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)(f"{level}2")
    assert [line["event"] for line in lines(out)] == ["debug1", "error1", "warning2"]
    assert handle.update({"log_format": "ISO8601"})["log_format"] == "ISO8601"


@pytest.mark.parametrize(("started", "said"), [("text", "ISO8601"), ("json", "json"), ("auto", "json")])
def test_the_default_format_is_the_one_the_process_started_with(out: io.StringIO, started: str, said: str) -> None:
    handle = logs.configure(started, stream=out)
    for other in ("json", "ISO8601"):
        handle.update({"log_format": other})
        assert handle.update({"log_format": "default"})["log_format"] == said


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"log_file": "/etc/passwd"}, Unsupported),
        ({"log_info": "yes"}, InvalidInput),
        ({"log_verbose_level": True}, InvalidInput),
        ({"log_verbose_level": -1}, InvalidInput),
        ({"log_format": "xml"}, InvalidInput),
        ({"log_everything": True}, InvalidInput),
    ],
)
def test_a_wrong_v2_setting_changes_nothing(
    out: io.StringIO, changes: dict[str, bool | int | float | str], kind: type[Exception]
) -> None:
    handle = logs.configure("json", stream=out)
    before = handle.settings()
    with pytest.raises(kind):
        handle.update({"log_warning": False, **changes})
    assert handle.settings() == before


def test_an_unknown_level_or_format_is_refused(out: io.StringIO) -> None:
    with pytest.raises(InvalidInput, match="one of debug, info"):
        logs.configure("json", "loud", stream=out)
    with pytest.raises(InvalidInput, match="one of auto, text"):
        logs.configure("xml", stream=out)


def test_traceback_of_another_process_is_an_exception_and_not_inside_the_event(out: io.StringIO) -> None:
    logs.configure("json", stream=out)
    log.error("model_error", extra={"model": "m", "trace": "Traceback …\nValueError: no"})
    (line,) = lines(out)
    assert (line["event"], line["exception"], line["model"]) == ("model_error", "Traceback …\nValueError: no", "m")
    assert "trace" not in line
