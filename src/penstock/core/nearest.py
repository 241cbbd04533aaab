"""What somebody may have meant who wrote a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 256  # characters of a name that is compared: callers of a server write names too, of megabytes if they like


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known name most like `name`, or nothing."""
    if len(name) > _LONGEST:
        return ""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
