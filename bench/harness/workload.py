"""What is measured: two models, their inputs and the answers they must give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime


@dataclass(frozen=True, slots=True)
class Workload:
    """One model with inputs (n, …) and the answers (n, 10) that ONNX Runtime gives in this process, float32."""

    name: str
    model: Path
    inputs: np.ndarray
    answers: np.ndarray


@dataclass(frozen=True, slots=True)
class Point:
    """One column of the result: which route of a server, with how many requests in flight."""

    table: str  # key of TABLES
    workload: str
    route: str  # `json`, `binary` or `grpc`: which of a server's calls
    connections: int

    @property
    def key(self) -> str:
        return f"{self.table}/{self.connections}"


TABLES = {
    "W1": "digits MLP 64→64→32→10, JSON, requests/s",
    "W2": "convolutions on 3×224×224 float32, binary body, requests/s",
    "W3": "digits MLP over gRPC, requests/s",
}

POINTS = (
    *(Point("W1", "digits", "json", connections) for connections in (1, 16, 64)),
    *(Point("W3", "digits", "grpc", connections) for connections in (1, 16, 64)),
    *(Point("W2", "conv", "binary", connections) for connections in (1, 8)),
)


def load(folder: Path, name: str) -> Workload:
    """The workload `name` from the files that `workloads/make_models.py` wrote to `folder`."""
    inputs = np.load(folder / f"{name}.npy")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"x": inputs})
    return Workload(name, folder / f"{name}.onnx", inputs, answers)
