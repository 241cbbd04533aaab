"""The model as two PyTriton functions: `serve.py HTTP_PORT GRPC_PORT METRICS_PORT NAME BATCH`.

PyTriton runs its functions in this process, one thread for each.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

HTTP, GRPC, METRICS, NAME, BATCH = sys.argv[1:]


def make_infer():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    @batch
    def infer(x: np.ndarray):
        return session.run(None, {"x": x})

    return infer


if __name__ == "__main__":
    shape = (64,) if NAME == "digits" else (3, 224, 224)
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(HTTP),
        grpc_address="127.0.0.1",
        grpc_port=int(GRPC),
        metrics_address="127.0.0.1",
        metrics_port=int(METRICS),
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=NAME,
            infer_func=[make_infer(), make_infer()],
            inputs=[Tensor(name="x", dtype=np.float32, shape=shape)],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(10,))],
            config=ModelConfig(max_batch_size=int(BATCH), batcher=DynamicBatcher()),
        )
        triton.serve()
