"""A real server, started as a user starts it: `penstock serve` in a process of its own, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_S = 60.0
STOP_S = 40.0  # the time of grace that a server has by itself, and some for its end

# Whose penstock is served: tests that run in an environment of other packages name the main one's interpreter.
PYTHON = os.environ.get("SERVER_PYTHON", sys.executable)


@dataclass
class RunningServer:
    """One server process. `http` is its base URL, `grpc` its address; `lines` are the lines of its standard output."""

    http: str
    grpc: str
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    log: Path | None = None
    reader: threading.Thread | None = None  # takes `lines`

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """The exit status after a signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)


ServerFactory = Callable[..., RunningServer]


def toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def write_config(path: Path, models: Mapping[str, str | Mapping[str, object]], options: Mapping[str, object]) -> None:
    """Writes penstock.toml: `models` maps a name to a path, or to a table of model options."""
    lines = ["[server]", 'log_format = "json"', *_lines(options)]
    for name, model in models.items():
        table = {"path": model} if isinstance(model, str) else model
        lines += [f"[models.{json.dumps(name)}]", *(f"{key} = {toml(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines) + "\n")


def _lines(options: Mapping[str, object]) -> list[str]:
    return [f"{key} = {toml(value)}" for key, value in options.items() if value is not None]


def start(
    folder: Path, models: Mapping[str, str | Mapping[str, object]], serve: Sequence[str] = (), **options: object
) -> RunningServer:
    """Starts a server and returns when it says that it serves. Raises with its log when it does not.

    `models` come into its configuration file, `serve` are paths on its command line, `options` are the server's.
    """
    config = folder / "penstock.toml"
    write_config(config, models, {"http_port": 0, "grpc_port": 0, **options})
    log = folder / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [PYTHON, "-m", "penstock.cli", "serve", "--config", str(config), *serve],
            stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder.parent,
        )  # fmt: skip
    assert process.stdout is not None
    killer = threading.Timer(START_S, process.kill)
    killer.start()
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if event.get("event") == "serving":
                    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
                    reader.start()
                    return RunningServer(event["http"], event["grpc"], process, lines, log, reader)
    finally:
        killer.cancel()
    raise RuntimeError(f"the server did not start (exit status {process.wait()}):\n{''.join(lines)}\n{log.read_text()}")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerFactory]:
    """Starts servers that live until the test ends. One that does not stop within its time fails the test."""
    yield from _servers(tmp_path)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFactory]:
    """Starts servers that live until the module's tests end, for tests that leave them as they found them."""
    yield from _servers(tmp_path_factory.mktemp("servers"))


def _servers(tmp_path: Path) -> Iterator[ServerFactory]:
    started: list[RunningServer] = []

    def factory(models: Mapping[str, str | Mapping[str, object]], **options: object) -> RunningServer:
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        running = start(folder, models, **options)
        started.append(running)
        return running

    yield factory
    hung: list[str] = []
    for running in started:
        try:
            running.stop(timeout_s=STOP_S)
        except subprocess.TimeoutExpired:
            hung.append(
                f"a server did not stop within {STOP_S:g} s of SIGTERM; its log ends with\n{_end_of(running.log)}"
            )
            running.process.kill()
            running.process.wait()
        if running.reader is not None:
            running.reader.join(10)  # closing the pipe under it would fail it
        if running.process.stdout is not None and not (running.reader and running.reader.is_alive()):
            running.process.stdout.close()
    if hung:
        pytest.fail("\n".join(hung))


def _end_of(log: Path | None) -> str:
    return "" if log is None else log.read_text(errors="replace")[-2000:]
