"""An asyncio model: it waits for something else (here: a clock), so one worker answers many requests at once.

penstock serve examples/waiter.py:Waiter
"""

from __future__ import annotations

import asyncio

import numpy as np

import penstock


@penstock.model(inputs={"seconds": "f8[n]"}, outputs={"slept": "f8[n]"}, batch=False, concurrency=64)
class Waiter:
    """Answers after the longest of the times asked for."""

    async def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seconds = np.clip(inputs["seconds"], 0.0, 5.0)
        await asyncio.sleep(float(seconds.max(initial=0.0)))
        return {"slept": seconds}
