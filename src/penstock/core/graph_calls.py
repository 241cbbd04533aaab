"""How protocols and graphs talk through the door: a body as a tensor, and parameters with a meaning of their own.

Graphs of bodies and messages take `body` (one element, the HTTP body) and `headers` (one element, a JSON object), and
give `body`, `status` and `content_type`: that way they pass through the same queue, fronts and metrics as models do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from penstock.core.messages import Response
from penstock.core.servable import Signature
from penstock.core.tensor import Array

LEVEL: Final = "level"  # of a graph's signature's metadata: what flows in it
TENSORS, BODIES, MESSAGES = "tensors", "bodies", "messages"
PROPAGATE: Final = "propagate"  # beside it: which headers go on, one regular expression a line

# Parameters of a request and of an answer. Names that no client uses by accident.
OPERATION: Final = "penstock_graph"
FEEDBACK, STATE = "feedback", "state"
ROUTE: Final = "route"  # which way each router node took: "choose=1,other=0"


def level_of(signature: Signature) -> str:
    """What flows in a graph; "" of a model that is none."""
    return signature.metadata.get(LEVEL, "")


def propagated(headers: Mapping[str, str], signature: Signature) -> dict[str, str]:
    """The headers that a graph's steps get too: those whose whole name one of its patterns matches. Whatever brought
    them: a client may write the tensor `headers` itself."""
    patterns = signature.metadata.get(PROPAGATE, "").split()
    return {
        name: value
        for name, value in headers.items()
        if name.lower() not in _OURS and any(re.fullmatch(each, name, re.IGNORECASE) for each in patterns)
    }


def propagated_raw(headers: Mapping[bytes, bytes], signature: Signature) -> dict[str, str]:
    """As `propagated`, of headers as they came."""
    if not signature.metadata.get(PROPAGATE):
        return {}
    return propagated({n.decode("latin-1"): value.decode("latin-1") for n, value in headers.items()}, signature)


# Of one connection or one body, whatever a pattern says: passed on, they would be wrong.
_OURS: Final = frozenset(
    ("connection", "content-length", "content-encoding", "content-type", "transfer-encoding", "host", "te", "upgrade",
     "keep-alive", "trailer", "expect", "accept-encoding", "penstock-timeout-ms")
)  # fmt: skip


def body_inputs(body: bytes, headers: Mapping[str, str] | None = None) -> dict[str, Array]:
    """The tensors that carry a body and its headers."""
    inputs = {"body": one(body)}
    if headers:
        inputs["headers"] = one(msgspec.json.encode(headers))
    return inputs


def body_outputs(status: int, body: bytes, content_type: str = "application/json") -> dict[str, Array]:
    """The tensors that carry an answer."""
    return {"body": one(body), "status": np.array([status], np.int32), "content_type": one(content_type.encode())}


def answered(response: Response) -> tuple[int, bytes, str]:
    """Status, body and content type that an answer carries."""
    outputs = response.outputs
    kind = outputs.get("content_type")
    content_type = "application/json" if kind is None else bytes_of(kind).decode("latin-1")
    return int(outputs["status"].ravel()[0]), bytes_of(outputs["body"]), content_type


def one(data: bytes) -> Array:
    """A BYTES tensor with one element."""
    array = np.empty(1, dtype=object)
    array[0] = data
    return array


def bytes_of(array: Array) -> bytes:
    """The one element of a BYTES tensor; nothing where there is none."""
    item = array.ravel()[0] if array.size else b""
    return item if isinstance(item, bytes) else str(item).encode()
