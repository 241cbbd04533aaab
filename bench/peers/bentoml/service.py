"""The models as BentoML services."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
import onnxruntime
from bentoml.validators import ContentType

QUIET = {"access": {"enabled": False}}


def session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


@bentoml.service(workers=2, logging=QUIET, metrics={"enabled": False})
class Digits:
    def __init__(self) -> None:
        self.session = session()

    @bentoml.api
    def predict(self, x: list[float]) -> list[float]:
        return self.session.run(None, {"x": np.array([x], np.float32)})[0][0].tolist()


@bentoml.service(workers=2, logging=QUIET, metrics={"enabled": False})
class DigitsBatch:
    def __init__(self) -> None:
        self.session = session()

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def predict(
        self, x: Annotated[np.ndarray, bentoml.validators.DType("float32"), bentoml.validators.Shape((-1, 64))]
    ) -> np.ndarray:
        return self.session.run(None, {"x": x})[0]


@bentoml.service(workers=2, logging=QUIET, metrics={"enabled": False})
class Conv:
    def __init__(self) -> None:
        self.session = session()

    @bentoml.api
    def predict(
        self, image: Annotated[Path, ContentType("application/octet-stream")], /
    ) -> Annotated[Path, ContentType("application/octet-stream")]:
        x = np.fromfile(image, np.float32).reshape(1, 3, 224, 224)
        answer = image.with_suffix(".answer")
        self.session.run(None, {"x": x})[0].tofile(answer)
        return answer
