"""Reads JSON that a stranger sent: typed, strict, and with no other exception than ours."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
import numpy as np

from penstock.core.errors import InvalidInput, PenstockError, TooLarge

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

# Parsed JSON takes far more memory than its text: an empty list is three bytes of it and 64 bytes of memory. So what is
# in a long text is counted first (0.6 ms for each MB; reading takes 2 to 5 ms); in a short one nothing great fits.
# The costs are those of CPython 3.11, the comma's for what most values take: measured, and rounded up.
_COUNTED_FROM_BYTES: Final = 8 << 20
_COUNTED_BYTES: Final = 256 << 10  # at a time: what fits into a core's own cache
_COSTS: Final = ((b"[", 64), (b"{", 240), (b",", 40))
_MOST_MEMORY_BYTES: Final = 1 << 30

_OBJECT = msgspec.json.Decoder(dict[str, object])


def read_json(body: Buffer | msgspec.Raw, decoder: msgspec.json.Decoder[T], what: str = "the body") -> T:
    """`body` as the decoder's type.

    Depth is bounded by what the type has room for; where the type is open, msgspec stops at the interpreter's own
    recursion limit with an error instead of exhausting the stack.

    Raises:
        InvalidInput: it is no JSON, or other JSON than the type allows; the message says where.
        TooLarge: it would take about a gigabyte of memory or more.
    """
    if not isinstance(body, msgspec.Raw) and len(body) > _COUNTED_FROM_BYTES:  # a Raw is part of what was counted
        _check_memory(body, what)
    try:
        return decoder.decode(body)
    except RecursionError:
        raise InvalidInput(f"{what} is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{what}: {error}") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidInput(f"{what} is not valid JSON: {error}") from None


def _check_memory(body: Buffer, what: str) -> None:
    text = np.frombuffer(body, np.uint8)
    pieces = (text[at : at + _COUNTED_BYTES] for at in range(0, len(text), _COUNTED_BYTES))
    memory = sum(int(np.count_nonzero(piece == ord(mark))) * cost for piece in pieces for mark, cost in _COSTS)
    if memory > _MOST_MEMORY_BYTES:
        raise TooLarge(
            f"{what} holds so many values that reading them would take over {_MOST_MEMORY_BYTES >> 20} MiB of memory; "
            "send fewer at a time, or binary data"
        )


def read_object(body: Buffer) -> dict[str, object]:
    """`body` as a JSON object; an empty body is an empty object, because clients send those.

    Raises:
        InvalidInput: it is something else.
        TooLarge: as `read_json`.
    """
    return read_json(body, _OBJECT) if len(body) else {}


def error_json(error: PenstockError) -> bytes:
    """The body that V2, V1 and our own routes answer an error with."""
    return msgspec.json.encode({"error": error.message})
