"""Models for graphs to ask, as users write them. Served by path: `graph_models.py:double`."""

from __future__ import annotations

import time

import numpy as np

import penstock

X, Y = {"x": "f8[n, 2]"}, {"y": "f8[n, 2]"}


@penstock.model(inputs=X, outputs=Y)
def double(x):  # type: ignore[no-untyped-def]
    return {"y": x * 2}


@penstock.model(inputs=X, outputs=Y)
def add_one(x):  # type: ignore[no-untyped-def]
    return {"y": x + 1}


@penstock.model(inputs=X, outputs={"total": "f8[n]"})
def total(x):  # type: ignore[no-untyped-def]
    return {"total": x.sum(axis=1)}


@penstock.model(inputs=X, outputs=Y)
def fail_above_100(x):  # type: ignore[no-untyped-def]
    if (x > 100).any():
        raise RuntimeError("too much for me")
    return {"y": x}


@penstock.model(inputs=X, outputs=Y, batch=penstock.Batch(max_size=4))
def slow(x):  # type: ignore[no-untyped-def]
    time.sleep(0.01)
    return {"y": x}


@penstock.model(inputs=X, outputs=Y)
def sleepy(x):  # type: ignore[no-untyped-def]
    time.sleep(float(x.max()))
    return {"y": x}


class Pipeline:
    """A graph in Python."""

    def __init__(self) -> None:
        self.double = penstock.endpoint("double")
        self.total = penstock.endpoint("total")

    async def predict(self, inputs):  # type: ignore[no-untyped-def]
        doubled = await self.double(x=np.asarray(inputs["x"], np.float64))
        return {"total": (await self.total({"x": doubled["y"]}))["total"]}
