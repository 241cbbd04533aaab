"""The model as a Ray Serve deployment: `serve.py PORT FOLDER KIND BATCH`."""

from __future__ import annotations

import os
import signal
import sys
import threading

import numpy as np
import onnxruntime
import orjson
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import Response

PORT, FOLDER, KIND, BATCH = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "1"


class Model:
    """One ONNX Runtime session on one thread; joins concurrent requests when asked to."""

    def __init__(self, model: str, batch: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.batch = batch

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.001)
    async def joined(self, rows: list) -> list:
        return list(self.session.run(None, {"x": np.stack(rows)})[0])

    async def answer(self, row: np.ndarray) -> np.ndarray:
        if self.batch:
            return await self.joined(row)
        return self.session.run(None, {"x": row[None]})[0][0]


@serve.deployment
class Digits(Model):
    async def __call__(self, request: Request) -> Response:
        row = np.array(orjson.loads(await request.body())["x"], np.float32)
        body = orjson.dumps({"y": await self.answer(row)}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")


@serve.deployment
class Conv(Model):
    async def __call__(self, request: Request) -> Response:
        row = np.frombuffer(await request.body(), np.float32).reshape(3, 224, 224)
        return Response((await self.answer(row)).tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # four logical CPUs: two replicas with one each, and room for the proxy and the controller
    ray.init(num_cpus=4, include_dashboard=False, _temp_dir=FOLDER, _node_ip_address="127.0.0.1", log_to_driver=False,
             object_store_memory=256 << 20)  # fmt: skip
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=PORT))
    deployment = (Digits if KIND == "Digits" else Conv).options(
        num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1}
    )
    serve.run(deployment.bind(os.environ["MODEL"], BATCH))
    stop.wait()
    serve.shutdown()
    ray.shutdown()
