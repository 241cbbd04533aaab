"""mosec: Rust front, Python workers over a Unix socket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.servers import Place, Start
from harness.wire import Call, json_call, raw_call

HERE = Path(__file__).parent


class Mosec:
    name = "mosec"
    packages = ("mosec", "onnxruntime", "orjson")
    distribution = "mosec"
    variants: ClassVar[dict[str, str]] = {
        "mosec": "2 workers, max_batch_size 32, max_wait_time 1 ms, orjson",
        "mosec-nobatch": "2 workers, no batching, orjson",
    }

    def calls(self, variant: str, workload: str) -> Mapping[str, Call]:
        return {"json": json_call("/inference")} if workload == "digits" else {"binary": raw_call("/inference")}

    def start(self, variant: str, place: Place) -> Start:
        batch = 1 if variant == "mosec-nobatch" else 32
        if place.workload.name == "conv":
            batch = min(batch, 4)
        arguments = ["--address", "127.0.0.1", "--port", place.http_port, "--timeout", 30000, "--log-level", "warning"]
        env = {"MODEL": str(place.workload.model), "WORKLOAD": place.workload.name, "BATCH": str(batch)}
        return Start([place.python, HERE / "serve.py", *arguments], env)


peer = Mosec()
