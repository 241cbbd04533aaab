"""The model that is served under fire: y = 3x after a set time per batch; one bad row fails the call."""

from __future__ import annotations

import os
import time

import penstock

WORK_S = float(os.environ["WORK_S"])


@penstock.model(inputs={"x": "f4[n, 10]"}, outputs={"y": "f4[n, 10]"}, batch=penstock.Batch(max_size=4))
def triple(x):
    if (x < 0).any():
        raise ValueError("a negative number")
    time.sleep(WORK_S)
    return {"y": x * 3}
