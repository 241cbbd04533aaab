"""KServe's Python server under fire."""

from __future__ import annotations

from pathlib import Path

from harness.servers import Place, Start

HERE = Path(__file__).parent


class KServe:
    settings = "workers 2; it has no batching of its own"
    deadlines = "none"
    structure = "workers hold the callers' connections"

    def start(self, place: Place) -> Start:
        command = [place.python, HERE / "triple.py", "--http_port", place.http_port, "--grpc_port", place.grpc_port]
        command += ["--workers", 2, "--enable_latency_logging", "false"]
        return Start(command, {"PYTHONPATH": str(HERE)})

    def is_worker(self, command_line: str) -> bool:
        return "spawn_main" in command_line

    def metrics_url(self, place: Place) -> str | None:
        return None


server = KServe()
