"""The model that is served under fire, as an MLServer runtime: y = 3x after a set time per batch; one bad row fails the
call."""

from __future__ import annotations

import os
import time

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

WORK_S = float(os.environ["WORK_S"])


class Triple(MLModel):
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        if (rows < 0).any():
            raise ValueError("a negative number")
        time.sleep(WORK_S)  # noqa: ASYNC251  # computing holds the worker's loop, as in its examples
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", rows * 3)])
