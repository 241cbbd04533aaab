"""An adapter whose servable may run in the front's loop and writes down the ids that it sees: the first number of each
row. A whole number and a half sleeps for half a second first."""

from __future__ import annotations

import os
import time

import numpy as np

from penstock.core.servable import Signature
from penstock.core.tensor import TensorSpec


class Watched:
    signature = Signature(
        (TensorSpec("x", "FP64", (-1,)),), (TensorSpec("y", "FP64", (-1,)),), "test", batchable=True, inline_safe=True
    )

    def predict(self, inputs, parameters):
        x = inputs["x"]
        with open(os.environ["SEEN_LOG"], "a") as log:
            log.write("".join(f"{value:g}\n" for value in x))
        if (x % 1 == 0.5).any():
            time.sleep(0.5)
        return {"y": np.asarray(x) * 3}

    def close(self):
        pass


class WatchedAdapter:
    name = "watched"
    inline_safe = True
    preload = ()

    def recognises(self, path):
        return False

    def load(self, path, context):
        return Watched()


plug = WatchedAdapter()
