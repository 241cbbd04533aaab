"""What a servable returned or raised, made into what the runtime promises. The same in a worker and inline."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

import numpy as np

from penstock.core.errors import Internal, LoadError, PenstockError, ServableError, WorkerLost
from penstock.core.servable import Signature
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec

_MESSAGE_CHARS = 1000
_TRACE_CHARS = 3000  # stays inside one socket message even if every character takes four bytes


def blame(error: BaseException) -> PenstockError:
    """The error a caller gets for an exception of user code: its own if it is one of ours that a model may raise
    (`InvalidInput` blames the caller, `Overloaded` the moment), else `ServableError` with the last line."""
    if isinstance(error, PenstockError) and not isinstance(error, (Internal, WorkerLost, LoadError)):
        return error
    return ServableError(last_line(error))


def last_line(error: BaseException) -> str:
    """The last line of an exception's traceback, of bounded length."""
    if isinstance(error, PenstockError):
        return error.message[:_MESSAGE_CHARS]
    try:
        text = traceback.format_exception_only(error)[-1].strip()
    except Exception:  # a broken __str__ of the model's own exception type
        text = type(error).__name__
    return text[:_MESSAGE_CHARS]


def trace(error: BaseException) -> str:
    """The traceback's end, for the log."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # as above
        text = type(error).__name__
    return text[-_TRACE_CHARS:]


def checked(returned: object, signature: Signature, rows: int) -> dict[str, Array]:
    """The declared outputs, in the signature's order and types.

    Args:
        rows: what axis 0 of each must be; -1 when there is no such rule.

    Raises:
        ServableError: an output is missing, is no tensor of the declared type, or has another number of rows.
    """
    if not isinstance(returned, Mapping):
        raise ServableError(f"the model returned {type(returned).__name__}, not a mapping of outputs by name")
    outputs: dict[str, Array] = {}
    if not signature.outputs:  # a model that declares none may return any
        return {str(name): _array(str(name), value, rows) for name, value in returned.items()}
    for spec in signature.outputs:
        value = returned.get(spec.name)
        if value is None:
            if spec.optional:
                continue
            raise ServableError(f"the model did not return the output '{spec.name}', only {sorted(map(str, returned))}")
        array = _array(spec.name, value, rows)
        outputs[spec.name] = array if array.dtype == NUMPY_OF[spec.datatype] else _converted(spec, array)
    return outputs


def _array(name: str, value: object, rows: int) -> Array:
    array: Array
    if isinstance(value, np.ndarray):
        array = value
    else:
        try:
            array = np.asarray(value)
        except Exception as error:  # whatever a foreign tensor type raises when asked for its values
            raise ServableError(f"output '{name}' is a {type(value).__name__}, no tensor: {error}") from None
    if rows >= 0 and (not array.ndim or array.shape[0] != rows):
        raise ServableError(f"output '{name}' is of shape {list(array.shape)}, the batch has {rows} rows on axis 0")
    return array


def _converted(spec: TensorSpec, array: Array) -> Array:
    want = NUMPY_OF[spec.datatype]
    if spec.datatype == "BYTES" and array.dtype.kind in "OSU":
        return array  # encoded as it is
    if array.dtype.kind not in "OSU" and want.kind != "O" and np.can_cast(array.dtype, want, "same_kind"):
        return array.astype(want)
    raise ServableError(f"output '{spec.name}' is of numpy type {array.dtype}, declared is {spec.datatype}")
