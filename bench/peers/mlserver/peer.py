"""MLServer: FastAPI and gRPC in front of a pool of inference workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.servers import Place, Start
from harness.wire import Call, v2_grpc_call, v2_json_call

HERE = Path(__file__).parent

# variant → (parallel_workers, max_batch_size)
SETTINGS = {"mlserver": (0, 0), "mlserver-batch": (0, 32), "mlserver-workers": (2, 0)}


class MLServer:
    name = "mlserver"
    packages = ("mlserver", "onnxruntime", "uvloop<0.22")  # newer ones break its workers
    distribution = "mlserver"
    variants: ClassVar[dict[str, str]] = {
        "mlserver": "parallel_workers 0 (the model in the one server process)",
        "mlserver-batch": "parallel_workers 0, max_batch_size 32, max_batch_time 1 ms",
        "mlserver-workers": "parallel_workers 2",
    }

    def calls(self, variant: str, workload: str) -> Mapping[str, Call]:
        if workload == "conv":
            return {"binary": v2_grpc_call(workload)}  # its REST side has no binary form
        return {"json": v2_json_call(workload), "grpc": v2_grpc_call(workload)}

    def start(self, variant: str, place: Place) -> Start:
        workers, batch = SETTINGS[variant]
        self.write(place, workers, min(batch, 4) if place.workload.name == "conv" else batch)
        env = {"PYTHONPATH": str(HERE)}
        return Start([place.bin / "mlserver", "start", place.folder], env)

    def write(self, place: Place, workers: int, batch: int) -> None:
        settings = {
            "host": "127.0.0.1",
            "http_port": place.http_port,
            "grpc_port": place.grpc_port,
            "metrics_port": place.extra_ports[0],
            "parallel_workers": workers,
            "debug": False,
        }
        (place.folder / "settings.json").write_text(json.dumps(settings))
        model = {
            "name": place.workload.name,
            "implementation": "model.Model",
            "parameters": {"uri": str(place.workload.model)},
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, *place.workload.inputs.shape[1:]]}],
        }
        if batch:
            model |= {"max_batch_size": batch, "max_batch_time": 0.001}
        (place.folder / "model-settings.json").write_text(json.dumps(model))


peer = MLServer()
