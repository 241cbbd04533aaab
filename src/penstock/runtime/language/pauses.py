"""How long to wait before work that nobody waits for is tried again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

LONGEST_S: Final = 30.0


def pauses() -> Iterator[float]:
    """Seconds before each further try: 0.1, 0.2, … up to the longest, without an end."""
    pause_s = 0.1
    while True:
        yield pause_s
        pause_s = min(LONGEST_S, pause_s * 2)
