"""Servers of language models, started as their users start them, each with all it has started ended afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


@contextlib.contextmanager
def penstock(models: Mapping[str, tuple[Path, Mapping[str, object]]], threads: int) -> Iterator[tuple[str, int]]:
    """`host:port` of a server with these models (name: path and options), and its process id."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = ["[server]", 'log_format = "json"', "http_port = 0", "grpc = false"]
        for model, (path, options) in models.items():
            lines += [f"[models.{model}]", f"path = {json.dumps(str(path))}", f"threads = {threads}"]
            lines += [f"[models.{model}.options]", *(f"{key} = {json.dumps(value)}" for key, value in options.items())]
        (folder / "penstock.toml").write_text("\n".join(lines) + "\n")
        log = folder / "log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "penstock.cli", "serve", "--config", str(folder / "penstock.toml")],
                stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if '"serving"' in line:
                    yield json.loads(line)["http"].removeprefix("http://"), process.pid
                    break
            else:
                raise SystemExit(f"Penstock did not start:\n{log.read_text()[-2000:]}")
        finally:
            _end(process)


@contextlib.contextmanager
def peer(command: Sequence[str], port: int, path: str, env: Mapping[str, str], patience_s: float) -> Iterator[str]:
    """`host:port` of another server once `path` answers. Raises: SystemExit with its last words."""
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(
            list(command), stdout=log, stderr=subprocess.STDOUT, env=os.environ | env, start_new_session=True
        )
        try:
            by = time.monotonic() + patience_s
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).read()
                    break
                if process.poll() is not None or time.monotonic() > by:
                    log.seek(0)
                    raise SystemExit(f"{command[:4]} did not start:\n{log.read()[-2000:]}")
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            _end(process, group=True)


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes], *, group: bool = False) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
            return


def cpu_s(pids: Sequence[int]) -> float:
    """Processor seconds that all threads of these processes have used: to the nanosecond, not to the tick."""
    threads = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e9


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found
