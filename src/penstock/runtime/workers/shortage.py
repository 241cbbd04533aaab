"""What a machine may be short of for a moment: files, processes, threads, memory."""

from __future__ import annotations

import errno

from penstock.core.errors import LoadError

_SHORT = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


def is_shortage(error: BaseException) -> bool:
    """Whether an error comes from a shortage, so that the same may work later without any change."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or (isinstance(seen, OSError) and seen.errno in _SHORT):
            return True
        if isinstance(seen, RuntimeError) and "can't start new thread" in str(seen):  # threading's own words
            return True
        if isinstance(seen, LoadError) and seen.shortage:
            return True
        seen = seen.__cause__
    return False


def ended_while_loading(cause: str, *, opened: bool) -> LoadError:
    """The error for a worker that ended before it was ready. When it had not `opened` the model yet, the model has no
    part in it: it counts as a shortage."""
    if opened:
        return LoadError(f"the worker ended while it loaded: {cause}")
    return LoadError(f"the worker ended before it could load the model: {cause}", shortage=True)
