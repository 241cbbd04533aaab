"""MLServer under fire."""

from __future__ import annotations

import json
from pathlib import Path

from harness.servers import Place, Start

HERE = Path(__file__).parent


class MLServer:
    settings = "parallel_workers 2, max_batch_size 4, max_batch_time 20 ms"
    deadlines = "none"
    structure = "workers apart from the listener"

    def start(self, place: Place) -> Start:
        settings = {
            "host": "127.0.0.1",
            "http_port": place.http_port,
            "grpc_port": place.grpc_port,
            "metrics_port": place.extra_ports[0],
            "parallel_workers": 2,
            "debug": False,
        }
        model = {
            "name": "triple",
            "implementation": "triple.Triple",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 10]}],
            "max_batch_size": 4,
            "max_batch_time": 0.02,
        }
        (place.folder / "settings.json").write_text(json.dumps(settings))
        (place.folder / "model-settings.json").write_text(json.dumps(model))
        return Start([place.bin / "mlserver", "start", place.folder], {"PYTHONPATH": str(HERE)})

    def is_worker(self, command_line: str) -> bool:
        return "spawn_main" in command_line

    def metrics_url(self, place: Place) -> str | None:
        return f"http://127.0.0.1:{place.extra_ports[0]}/metrics"


server = MLServer()
