"""A model that answers with a stream: the running totals of its input, one number per answer.

penstock serve examples/ticker.py:totals
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import penstock


@penstock.model(inputs={"x": "f8[n]"}, outputs={"total": "f8[]"})
def totals(x: np.ndarray) -> Iterator[dict[str, float]]:
    """Yields as many answers as `x` has numbers. A client that leaves stops it at the next one."""
    total = 0.0
    for number in x:
        total += float(number)
        yield {"total": total}
