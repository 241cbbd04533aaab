"""How far a stream may run ahead of its reader."""

from __future__ import annotations

from typing import Final

from penstock.core.language import KIND
from penstock.core.servable import Signature

WINDOW: Final = 4  # items that may be under way to a reader who has not taken them
# Of tokens: they are small, their engine is not held back by a reader anyway, and each time that the worker is told
# costs two processes as much as a token does (bench/llm/overhead.py).
_LANGUAGE_WINDOW: Final = 64


def window_of(signature: Signature) -> int:
    """Items of a stream of this model that may be under way."""
    return _LANGUAGE_WINDOW if KIND in signature.metadata else WINDOW
