"""The lines in a replica's log by which it says that it serves, where, and what it has loaded."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

_READ_BYTES = 1 << 20


class Serving(msgspec.Struct):
    """What the line says. `http` is a URL, `grpc` an address or empty."""

    event: str
    http: str
    grpc: str
    pid: int
    content: dict[str, str] = {}  # SHA-256 of what it has loaded, by version


class _Ready(msgspec.Struct):
    """The line about one model, before the one that it serves."""

    event: str
    model: str
    sha256: dict[str, str] = {}


class Listener:
    """Reads a log from its beginning on, until the process `pid` says that it serves. Of its models, `name` counts."""

    def __init__(self, log: Path, name: str, pid: int | None) -> None:
        self._log = log
        self._name = name
        self._content: dict[str, str] = {}
        self._pid = pid
        self._position = 0
        self._rest = b""

    def look(self) -> Serving | None:
        """What it says, once it does; in a thread."""
        while data := self._read_on():
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                if (said := self._serving(line)) is not None:
                    return said
        return None

    def _serving(self, line: bytes) -> Serving | None:
        if b'"ready"' in line:
            with contextlib.suppress(msgspec.DecodeError):
                ready = msgspec.json.decode(line, type=_Ready)
                if ready.event == "ready" and ready.model == self._name:
                    self._content = {version: digest for version, digest in ready.sha256.items() if digest}
        if b'"serving"' in line:
            with contextlib.suppress(msgspec.DecodeError):
                said = msgspec.json.decode(line, type=Serving)
                if said.event == "serving" and said.pid == self._pid:  # not what user code has printed
                    said.content = self._content
                    return said
        return None

    def _read_on(self) -> bytes:
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._position:  # it was cut
                self._position = 0
            file.seek(self._position)
            data = file.read(_READ_BYTES)
            self._position += len(data)
            return data
        return b""
