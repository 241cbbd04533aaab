"""The model as a LitAPI: `serve.py PORT`."""

from __future__ import annotations

import os
import sys

import litserve
import numpy as np
import onnxruntime

BATCH = int(os.environ["BATCH"])


class Model(litserve.LitAPI):
    """Batches of inputs through one ONNX Runtime session on one thread."""

    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def batch(self, inputs):
        return np.stack(inputs)

    def unbatch(self, output):
        return list(output)

    def predict(self, x):
        return self.session.run(None, {"x": x if BATCH > 1 else x[None]})[0]

    def encode_response(self, output):
        return {"y": output.ravel().tolist()}


class Digits(Model):
    def decode_request(self, request):
        return np.array(request["x"], np.float32)


class Conv(Model):
    def decode_request(self, request):
        return np.load(request["x"].file)[0]


if __name__ == "__main__":
    kind = Digits if os.environ["WORKLOAD"] == "digits" else Conv
    api = kind(max_batch_size=BATCH, batch_timeout=0.001 if BATCH > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
