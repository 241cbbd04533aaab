"""A server of one command's own: started for a path, on free ports, and stopped at the end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from penstock.core.errors import LoadError


@dataclass(frozen=True, slots=True)
class Started:
    """A running server: its HTTP URL, its gRPC address, its process."""

    http: str
    grpc: str
    pid: int


@contextlib.contextmanager
def started(path: str) -> Iterator[Started]:
    """A server for `path`.

    Raises:
        LoadError: it ended before it was ready; why stands on standard error.
    """
    command = [sys.executable, "-m", "penstock.cli", "serve", path, "--http-port", "0", "--grpc-port", "0"]
    command += ["--log-format", "json"]  # whatever the environment says
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                serving = _serving(line)
                if serving is not None:
                    yield Started(str(serving["http"]), str(serving["grpc"]), process.pid)
                    return
            raise LoadError(f"the server for {path} ended before it was ready")
        finally:
            process.terminate()


def _serving(line: str) -> Mapping[str, object] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and event.get("event") == "serving" else None
