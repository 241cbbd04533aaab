"""The model as a mosec worker."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
import orjson
from mosec import Server, Worker

BATCH = int(os.environ["BATCH"])


class Model(Worker):
    """Batches of inputs through one ONNX Runtime session on one thread."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def run(self, rows: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": rows})[0]

    def forward(self, data):
        if BATCH == 1:
            return self.run(data[None])[0]
        return list(self.run(np.stack(data)))


class Digits(Model):
    def deserialize(self, data: bytes) -> np.ndarray:
        return np.array(orjson.loads(data)["x"], np.float32)

    def serialize(self, data: np.ndarray) -> bytes:
        return orjson.dumps({"y": data}, option=orjson.OPT_SERIALIZE_NUMPY)


class Conv(Model):
    def deserialize(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.float32).reshape(3, 224, 224)

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Digits if os.environ["WORKLOAD"] == "digits" else Conv,
        num=2,
        max_batch_size=BATCH,
        max_wait_time=1 if BATCH > 1 else 0,
    )
    server.run()
