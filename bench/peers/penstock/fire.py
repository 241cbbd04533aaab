"""Penstock under fire."""

from __future__ import annotations

from pathlib import Path

from harness.servers import Place, Start

HERE = Path(__file__).parent


class Penstock:
    settings = "workers 2, batches of at most 4; all else as it comes"
    deadlines = "V2 `timeout`, gRPC deadline, `timeout_s`: queue and work"
    structure = "workers apart from the listener"

    def start(self, place: Place) -> Start:
        config = place.folder / "penstock.toml"
        config.write_text(f'[models.triple]\npath = "{HERE / "triple.py"}:triple"\nworkers = 2\n')
        command = [place.bin / "penstock", "serve", "--config", config]
        return Start([*command, "--http-port", place.http_port, "--grpc-port", place.grpc_port])

    def is_worker(self, command_line: str) -> bool:
        return "penstock.runtime.workers" in command_line

    def metrics_url(self, place: Place) -> str | None:
        return None


server = Penstock()
