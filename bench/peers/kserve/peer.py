"""KServe's Python server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.servers import Place, Start
from harness.wire import Call, v2_binary_call, v2_grpc_call, v2_json_call

HERE = Path(__file__).parent


class KServe:
    name = "kserve"
    packages = ("kserve", "onnxruntime")
    distribution = "kserve"
    variants: ClassVar[dict[str, str]] = {"kserve": "workers 2", "kserve-1": "workers 1"}

    def calls(self, variant: str, workload: str) -> Mapping[str, Call]:
        if workload == "conv":
            return {"binary": v2_binary_call(workload)}
        return {"json": v2_json_call(workload), "grpc": v2_grpc_call(workload)}

    def start(self, variant: str, place: Place) -> Start:
        command = [place.python, HERE / "serve.py", "--http_port", place.http_port, "--grpc_port", place.grpc_port]
        command += ["--workers", 1 if variant == "kserve-1" else 2, "--enable_latency_logging", "false"]
        return Start(command, {"MODEL": str(place.workload.model), "NAME": place.workload.name})


peer = KServe()
