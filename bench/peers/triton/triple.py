"""The model that is served under fire, for Triton's Python backend: y = 3x after a set time per batch; one bad row
fails the call."""

from __future__ import annotations

import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils

WORK_S = float(os.environ["WORK_S"])


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        rows = np.concatenate(inputs)
        if (rows < 0).any():
            raise ValueError("a negative number")
        time.sleep(WORK_S)
        answers, responses, at = rows * 3, [], 0
        for each in inputs:
            tensor = pb_utils.Tensor("y", answers[at : at + len(each)])
            responses.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
            at += len(each)
        return responses
