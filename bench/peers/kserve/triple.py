"""The model that is served under fire, as a KServe model: y = 3x after a set time per call."""

from __future__ import annotations

import os
import time

import kserve
from kserve.utils.utils import get_predict_response
from serve import stay_on_loopback

WORK_S = float(os.environ["WORK_S"])


class Triple(kserve.Model):
    def __init__(self) -> None:
        super().__init__("triple")
        self.ready = True

    def get_input_types(self):
        return [{"name": "x", "datatype": "FP32", "shape": [-1, 10]}]

    def predict(self, payload, headers=None, response_headers=None):
        rows = payload.inputs[0].as_numpy()
        if (rows < 0).any():
            raise ValueError("a negative number")
        time.sleep(WORK_S)
        return get_predict_response(payload, rows * 3, self.name)


if __name__ == "__main__":
    stay_on_loopback()
    kserve.ModelServer().start([Triple()])
