"""Reads JSON that a stranger sent: typed, strict, and with no other exception than ours."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from penstock.core.errors import InvalidInput, PenstockError

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

_OBJECT = msgspec.json.Decoder(dict[str, object])


def read_json(body: Buffer | msgspec.Raw, decoder: msgspec.json.Decoder[T], what: str = "the body") -> T:
    """`body` as the decoder's type.

    Depth is bounded by what the type has room for; where the type is open, msgspec stops at the interpreter's own
    recursion limit with an error instead of exhausting the stack.

    Raises:
        InvalidInput: it is no JSON, or other JSON than the type allows; the message says where.
    """
    try:
        return decoder.decode(body)
    except RecursionError:
        raise InvalidInput(f"{what} is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{what}: {error}") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidInput(f"{what} is not valid JSON: {error}") from None


def read_object(body: Buffer) -> dict[str, object]:
    """`body` as a JSON object; an empty body is an empty object, because clients send those.

    Raises:
        InvalidInput: it is something else.
    """
    return read_json(body, _OBJECT) if len(body) else {}


def error_json(error: PenstockError) -> bytes:
    """The body that V2, V1 and our own routes answer an error with."""
    return msgspec.json.encode({"error": error.message})
