"""Lines to a pipe: written whole while somebody reads, dropped and counted while nobody does."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path

import pytest

from penstock.telemetry import logs
from penstock.telemetry.outlet import outlet


def drain(fd: int) -> str:
    os.set_blocking(fd, False)
    read = b""
    while True:
        try:
            part = os.read(fd, 1 << 20)
        except BlockingIOError:
            return read.decode()
        if not part:
            return read.decode()
        read += part


def test_line_that_finds_no_room_is_dropped_and_counted_and_the_flags_of_others_stay() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream:
        lines = outlet(stream)
        assert lines is not None
        assert os.get_blocking(write_end)
        written = 0
        while lines.line("x" * 1000):
            written += 1
        assert written >= 60  # a pipe holds 64 KiB
        assert not lines.line("y" * 5000)
        assert lines.dropped == 2
        assert [len(line) for line in drain(read_end).splitlines()][:written] == [1000] * written
        assert lines.line("after")
        assert drain(read_end).splitlines()[-1] == "after"
        lines.close()
    os.close(read_end)


def test_socket_is_not_waited_for_either() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("w") as stream:
        lines = outlet(stream)
        assert lines is not None
        while lines.line("x" * 1000):
            pass
        assert lines.dropped == 1
        lines.close()


def test_reader_who_left_is_an_error_and_a_file_needs_no_outlet(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream, (tmp_path / "log").open("w") as file:
        lines = outlet(stream)
        os.close(read_end)
        assert lines is not None
        with pytest.raises(BrokenPipeError):
            lines.line("x")
        lines.close()
        assert outlet(file) is None


def test_log_tells_how_many_lines_were_dropped_once_somebody_reads() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream:
        handler = logs.Logs(stream).handler
        handler.setFormatter(logs.JsonFormatter())

        def log(text: str) -> None:
            handler.emit(logging.LogRecord("penstock.test", logging.INFO, "", 0, text, (), None))

        for _ in range(200):
            log("z" * 1000)
        kept = drain(read_end).splitlines()
        log("after")
        told, after = drain(read_end).splitlines()[-2:]
        assert json.loads(told)["event"] == "log_lines_dropped"
        whole = sum(line.endswith("}") for line in kept)
        assert json.loads(told)["lines"] == 200 - whole
        assert json.loads(after)["event"] == "after"
        handler.close()
    os.close(read_end)
