"""Ray Serve: an HTTP proxy in front of replica actors, on a Ray head that the script starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.servers import Place, Start
from harness.wire import Call, json_call, raw_call

HERE = Path(__file__).parent


class RayServe:
    name = "ray"
    packages = ("ray[serve]", "onnxruntime", "orjson")
    distribution = "ray"
    variants: ClassVar[dict[str, str]] = {
        "ray": "num_replicas 2, no batching",
        "ray-batch": "num_replicas 2, @serve.batch up to 32, wait 1 ms",
    }

    def calls(self, variant: str, workload: str) -> Mapping[str, Call]:
        return {"json": json_call("/")} if workload == "digits" else {"binary": raw_call("/")}

    def start(self, variant: str, place: Place) -> Start:
        batch = variant == "ray-batch"
        kind = "Digits" if place.workload.name == "digits" else "Conv"
        command = [place.python, HERE / "serve.py", place.http_port, place.folder / "ray", kind, int(batch)]
        env = {"MODEL": str(place.workload.model), "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
        return Start(command, env)


peer = RayServe()
