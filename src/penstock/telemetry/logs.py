"""Structured logs on the standard library's logging: an event's name, and fields.

    log = logging.getLogger("penstock.manager")
    log.info("version_ready", extra={"model": "iris", "version": 3, "seconds": 0.4})

`configure` is called once by a process's entry point, and gives back the handle that changes level and format later.
`bind` puts fields on every line that is logged inside it, in the same thread or task.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TextIO

import orjson

from penstock.core.errors import InvalidInput, Unsupported
from penstock.core.messages import Parameter
from penstock.telemetry.outlet import outlet

# One line per request; silent unless asked for, as it costs more than a small request does.
ACCESS = "penstock.access"

# Longest text of one field, and of a traceback. An input of a megabyte in an error's message must not fill a disk;
# a traceback's end names the error and its start the way in, so its middle goes.
FIELD_CHARS = 2_000
TRACEBACK_CHARS = 16_000

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS = ("auto", "text", "json")

# Fields whose values never reach a log, whoever logs them.
_SECRET = frozenset({"authorization", "api_key", "password", "secret", "token", "tls_key"})

# What a LogRecord has of its own; everything else in it came by `extra`.
_OWN = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName", "trace"}

_bound: ContextVar[Mapping[str, object]] = ContextVar("penstock_log_fields")

_COLOURS = {
    logging.DEBUG: "2",
    logging.INFO: "32",
    logging.WARNING: "33",
    logging.ERROR: "31",
    logging.CRITICAL: "31;1",
}


@contextlib.contextmanager
def bind(**fields: object) -> Iterator[None]:
    """Puts fields on every line logged inside, such as `model`, `version`, `request_id`; nested ones add up."""
    token = _bound.set({**_bound.get({}), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def configure(format: str = "auto", level: str = "info", *, access: bool = False, stream: TextIO | None = None) -> Logs:
    """Sends all of this process's logs to `stream` (standard error), and gives back the handle to change that.

    `format` "auto" is text on a terminal and JSON lines elsewhere. Third parties' loggers speak from "warning" on.
    A second call replaces the first.

    Raises:
        InvalidInput: no such format or level.
    """
    logs = Logs(stream or sys.stderr)
    logs.set_format(format)
    logs.set_level(level)
    logs.set_access(access)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(handler)
        handler.close()
    root.addHandler(logs.handler)
    root.setLevel(logging.WARNING)
    return logs


class Logs:
    """What a process logs, and how. Changes take effect at the next line."""

    def __init__(self, stream: TextIO) -> None:
        self.handler = _Handler(stream)
        self._switch = _Switch()
        self.handler.addFilter(self._switch)
        self._terminal = stream.isatty()
        self._started = ""
        self._verbose = 0

    def set_format(self, format: str) -> None:
        """The first one is what "default" means to V2 clients. Raises: InvalidInput when it is none of `FORMATS`."""
        if format not in FORMATS:
            raise InvalidInput(f"log format {format!r}; one of {', '.join(FORMATS)}")
        self._started = self._started or format
        text = format == "text" or (format == "auto" and self._terminal)
        self.handler.setFormatter(TextFormatter(colour=self._terminal) if text else JsonFormatter())

    def set_level(self, level: str) -> None:
        """The least level logged. Raises: InvalidInput when it is none of `LEVELS`."""
        if level not in LEVELS:
            raise InvalidInput(f"log level {level!r}; one of {', '.join(LEVELS)}")
        least = LEVELS[level]
        self._verbose = int(least <= logging.DEBUG)
        self._switch.info = least <= logging.INFO
        self._switch.warning = least <= logging.WARNING
        self._switch.error = True
        self._apply()

    def set_access(self, on: bool) -> None:
        """Whether each request writes a line to the logger `ACCESS`."""
        # A level that nothing reaches keeps the question `isEnabledFor` at some 50 ns a request while it is off.
        logging.getLogger(ACCESS).setLevel(logging.INFO if on else logging.CRITICAL + 1)

    def settings(self) -> dict[str, Parameter]:
        """The settings in the V2 logging extension's terms."""
        return {
            "log_file": "",
            "log_info": self._switch.info,
            "log_warning": self._switch.warning,
            "log_error": self._switch.error,
            "log_verbose_level": self._verbose,
            "log_format": "ISO8601" if isinstance(self.handler.formatter, TextFormatter) else "json",
        }

    def update(self, changes: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """Changes settings in the V2 logging extension's terms, all or none, and gives back all of them.

        `log_verbose_level` from 1 on is this server's "debug". `log_format` takes "default" (as started), "ISO8601"
        (text; every form here has ISO 8601 times) and "json".

        Raises:
            InvalidInput: an unknown setting, or a value of the wrong kind.
            Unsupported: `log_file`, which no caller may choose.
        """
        for name, value in changes.items():
            _check(name, value)
        switch = self._switch
        switch.info = bool(changes.get("log_info", switch.info))
        switch.warning = bool(changes.get("log_warning", switch.warning))
        switch.error = bool(changes.get("log_error", switch.error))
        self._verbose = int(changes.get("log_verbose_level", self._verbose))
        if "log_format" in changes:
            self.set_format({"default": self._started, "ISO8601": "text", "json": "json"}[str(changes["log_format"])])
        self._apply()
        return self.settings()

    def _apply(self) -> None:
        self._switch.debug = self._verbose > 0
        least = logging.DEBUG if self._verbose else logging.INFO if self._switch.info else logging.WARNING
        logging.getLogger("penstock").setLevel(least)


def _check(name: str, value: Parameter) -> None:
    if name == "log_file":
        raise Unsupported("log_file cannot be changed by a request; redirect the server's standard error instead")
    if name in ("log_info", "log_warning", "log_error"):
        if not isinstance(value, bool):
            raise InvalidInput(f"{name} is true or false, not {value!r}")
    elif name == "log_verbose_level":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:  # the protocol's uint32
            raise InvalidInput(f"log_verbose_level is a whole number from 0 on, not {value!r}")
    elif name == "log_format":
        if value not in ("default", "ISO8601", "json"):
            raise InvalidInput(f"log_format is 'default', 'ISO8601' or 'json', not {value!r}")
    else:
        raise InvalidInput(f"no log setting {name!r}")


class _Switch(logging.Filter):
    """Lets each kind of line through or not; V2 clients switch them one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.debug = False
        self.info = self.warning = self.error = True

    def filter(self, record: logging.LogRecord) -> bool:
        level = record.levelno
        if level >= logging.ERROR:
            return self.error
        if level >= logging.WARNING:
            return self.warning
        return self.info if level >= logging.INFO else self.debug


class _Handler(logging.StreamHandler[TextIO]):
    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._outlet = outlet(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the line, or drops it where that would wait for a reader; what was dropped is told once he reads."""
        if self._outlet is None:
            super().emit(record)
            return
        try:
            dropped = self._outlet.dropped
            if dropped:
                told = logging.LogRecord("penstock.logs", logging.WARNING, "", 0, "log_lines_dropped", (), None)
                told.lines = dropped
                if not self._outlet.line(self.format(told)):
                    self._outlet.dropped = dropped + 1
                    return
                self._outlet.dropped = 0
            self._outlet.line(self.format(record))
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        if self._outlet is not None:
            self._outlet.close()
            self._outlet = None
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Drops the line: a full disk or a closed terminal must not stop a server. What could not be formatted is a
        mistake of ours and leaves a trace."""
        if not isinstance(sys.exc_info()[1], OSError):
            text = _plain(f"unreadable log line from {record.name}: {record.msg!r:.200}")
            with contextlib.suppress(OSError, ValueError):
                if self._outlet is not None:
                    self._outlet.line(text)
                else:
                    self.stream.write(text + "\n")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `event`, the fields, and `exception` with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _cut(record.getMessage()),
        }
        for name, value in _fields(record).items():
            line[f"{name}_" if name in line else name] = value
        failure = _traceback(record)
        if failure:
            line["exception"] = failure
        return orjson.dumps(line, default=_text, option=orjson.OPT_NON_STR_KEYS).decode()


class TextFormatter(logging.Formatter):
    """A line for people: time, level, event, `field=value`; an exception indented below."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower():<8}"
        if self._colour:
            level = f"\x1b[{_COLOURS.get(record.levelno, '0')}m{level}\x1b[0m"
        fields = "".join(f" {name}={_shown(value)}" for name, value in _fields(record).items())
        line = f"{_iso(record.created)} {level} {_plain(_cut(record.getMessage()))}{fields}"
        failure = _traceback(record)
        if failure:
            line += "\n" + "\n".join("    " + _plain(part) for part in failure.splitlines())
        return line


def _fields(record: logging.LogRecord) -> dict[str, object]:
    own = {name: value for name, value in record.__dict__.items() if name not in _OWN}
    return {
        name: "***" if name.lower() in _SECRET else _bounded(value)
        for name, value in {**_bound.get({}), **own}.items()
        if not name.startswith("_")
    }


def _bounded(value: object) -> object:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else _cut(str(value))  # what orjson can write
    return _cut(value if isinstance(value, str) else _text(value))


def _text(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return value[:FIELD_CHARS].decode(errors="backslashreplace")
    return _cut(str(value))


def _cut(text: str) -> str:
    text = text.encode(errors="replace").decode() if not text.isascii() else text  # lone surrogates have no JSON
    return text if len(text) <= FIELD_CHARS else f"{text[:FIELD_CHARS]}… ({len(text) - FIELD_CHARS} more)"


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    bare = text and text.isprintable() and not set(text) & set(' "=')
    return text if bare else _plain(json.dumps(text, ensure_ascii=False))


def _plain(text: str) -> str:
    """The text with no control characters: a line cannot be forged, a terminal cannot be driven."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[0] is not None:
        text = "".join(traceback.format_exception(*record.exc_info))
    else:
        text = str(getattr(record, "trace", ""))  # of an exception in another process, by `extra`
    text = text.encode(errors="replace").decode().rstrip()
    if len(text) > TRACEBACK_CHARS:
        half = TRACEBACK_CHARS // 2
        text = f"{text[:half]}\n… ({len(text) - TRACEBACK_CHARS} more)\n{text[-half:]}"
    return text


def _iso(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"
