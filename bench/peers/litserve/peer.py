"""LitServe: FastAPI front, worker processes over queues."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.servers import Place, Start
from harness.wire import Call, json_call, multipart_call

HERE = Path(__file__).parent


class LitServe:
    name = "litserve"
    packages = ("litserve", "onnxruntime", "python-multipart")
    distribution = "litserve"
    variants: ClassVar[dict[str, str]] = {
        "litserve": "workers_per_device 2, max_batch_size 32, batch_timeout 1 ms, fast_queue",
        "litserve-nobatch": "workers_per_device 2, no batching, fast_queue",
    }

    def calls(self, variant: str, workload: str) -> Mapping[str, Call]:
        return {"json": json_call("/predict")} if workload == "digits" else {"binary": multipart_call("/predict", "x")}

    def start(self, variant: str, place: Place) -> Start:
        batch = 1 if variant == "litserve-nobatch" else 32
        if place.workload.name == "conv":
            batch = min(batch, 4)
        env = {"MODEL": str(place.workload.model), "WORKLOAD": place.workload.name, "BATCH": str(batch)}
        return Start([place.python, HERE / "serve.py", place.http_port], env)


peer = LitServe()
