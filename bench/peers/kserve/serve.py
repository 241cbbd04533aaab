"""The model as a KServe model."""

from __future__ import annotations

import os

import grpc.aio
import kserve
import kserve.protocol.rest.server as rest
import onnxruntime
from kserve.utils.utils import get_predict_response


class Model(kserve.Model):
    def __init__(self) -> None:
        super().__init__(os.environ["NAME"])
        self.load()

    def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.ready = True
        return True

    def __reduce__(self):
        """A worker process gets the model's class and loads it again: a session cannot be sent."""
        return Model, ()

    def predict(self, payload, headers=None, response_headers=None):
        rows = payload.inputs[0].as_numpy()
        return get_predict_response(payload, self.session.run(None, {"x": rows})[0], self.name)


def stay_on_loopback() -> None:
    """KServe listens on every address and has no option for it; a measurement should not."""
    config, add_port = rest.uvicorn.Config.__init__, grpc.aio.Server.add_insecure_port

    def local_config(self, *args, **options):
        config(self, *args, **(options | {"host": "127.0.0.1"}))

    rest.uvicorn.Config.__init__ = local_config
    grpc.aio.Server.add_insecure_port = lambda self, address: add_port(self, address.replace("[::]", "127.0.0.1"))


if __name__ == "__main__":
    stay_on_loopback()
    kserve.ModelServer().start([Model()])
