"""The model for Triton's Python backend: all requests of a call in one ONNX Runtime batch."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = json.loads(args["model_config"])["parameters"]["model"]["string_value"]
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        rows = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
        (answers,) = self.session.run(None, {"x": rows})
        responses, at = [], 0
        for each in inputs:
            tensor = pb_utils.Tensor("y", answers[at : at + len(each)])
            responses.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
            at += len(each)
        return responses
