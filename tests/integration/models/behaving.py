"""User models that do what their input says. What reached user code is written to the file named by RAN_LOG."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np

import penstock


def ran(values: np.ndarray) -> None:
    if path := os.environ.get("RAN_LOG"):
        with open(path, "a") as log:
            log.write("".join(f"{value:g}\n" for value in np.ravel(values)))


@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]", "pid": "i8[n]"})
def double(x: np.ndarray) -> dict[str, np.ndarray]:
    """Negative numbers are refused."""
    if (x < 0).any():
        raise ValueError("negative numbers are not doubled here")
    return {"y": 2 * x, "pid": np.full(len(x), os.getpid())}


@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]", "pid": "i8[n]"}, batch=False)
def slow(x: np.ndarray) -> dict[str, np.ndarray]:
    """Takes as many seconds as x[0] has hundredths of its fraction: 7.25 takes 0.25 s. 666 ends the process."""
    ran(x)
    time.sleep(float(x[0] % 1))
    if x[0] == 666:
        os._exit(1)
    return {"y": x, "pid": np.full(len(x), os.getpid())}


@penstock.model(inputs={"x": "f8[1]"}, outputs={"y": "f8[1]"})
def spin(x: np.ndarray) -> dict[str, np.ndarray]:
    """Never ends for numbers above 0."""
    while x[0] > 1:
        pass
    return {"y": x}


@penstock.model(inputs={"x": "f8[n]"}, outputs={"total": "f8[]"})
def totals(x: np.ndarray) -> Iterator[dict[str, float]]:
    """Running totals; a number above 100 breaks the stream."""
    total = 0.0
    for number in x:
        ran(number)
        if number > 100:
            raise ValueError("too large")
        total += float(number)
        yield {"total": total}
        time.sleep(0.01)
