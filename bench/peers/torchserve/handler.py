"""The model as a TorchServe handler: JSON `{"x": [64 numbers]}`, or one image as raw float32."""

from __future__ import annotations

import json
import os

import numpy as np
import onnxruntime


class Handler:
    def initialize(self, context):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = os.path.join(context.system_properties["model_dir"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.digits = self.session.get_inputs()[0].shape[1] == 64

    def handle(self, data, context):
        bodies = [row.get("body") or row.get("data") for row in data]
        if self.digits:
            rows = [(body if isinstance(body, dict) else json.loads(body))["x"] for body in bodies]
            (answers,) = self.session.run(None, {"x": np.array(rows, np.float32)})
            return [{"y": answer} for answer in answers.tolist()]
        images = np.stack([np.frombuffer(body, np.float32).reshape(3, 224, 224) for body in bodies])
        (answers,) = self.session.run(None, {"x": images})
        return [answer.tobytes() for answer in answers]


handler = Handler()


def handle(data, context):
    """TorchServe's entry point; the first call only loads."""
    if not hasattr(handler, "session"):
        handler.initialize(context)
    return None if data is None else handler.handle(data, context)
