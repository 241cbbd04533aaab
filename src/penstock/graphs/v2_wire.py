"""Tensors as a request to a server of the Open Inference Protocol V2, and its answer as tensors; binary both ways.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from penstock.core import json_tensor
from penstock.core.errors import Internal, PenstockError
from penstock.core.messages import Parameter
from penstock.core.tensor import Array, datatype_of, from_wire, normal, to_wire

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_LARGEST_BYTES: Final = 1 << 31


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, object] = {}
    data: msgspec.Raw = msgspec.Raw(b"[]")


class _Answer(msgspec.Struct):
    outputs: list[_Output]


_ANSWER: Final = msgspec.json.Decoder(_Answer)


def request(
    inputs: Mapping[str, Array], parameters: Mapping[str, Parameter], request_id: str = ""
) -> tuple[bytes, dict[str, str]]:
    """The body of an infer call, and its headers."""
    tensors: list[dict[str, object]] = []
    parts: list[bytes | memoryview] = []
    for name, array in inputs.items():
        datatype = datatype_of(array)
        data = to_wire(normal(array), datatype)
        tensors.append(
            {
                "name": name, "shape": list(array.shape), "datatype": datatype,
                "parameters": {"binary_data_size": len(data)},
            }
        )  # fmt: skip
        parts.append(data)
    document: dict[str, object] = {"inputs": tensors, "parameters": {**parameters, "binary_data_output": True}}
    if request_id:
        document["id"] = request_id
    head = msgspec.json.encode(document)
    return b"".join([head, *parts]), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def answer(body: bytes, header_length: str) -> dict[str, Array]:
    """The outputs of an answer; `header_length` is its header of that name, "" for pure JSON.

    Raises:
        Internal: it cannot be read; the server at the other end is to blame.
    """
    try:
        return _answer(body, header_length)
    except (PenstockError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Internal(f"its answer cannot be read: {error}") from None


def _answer(body: bytes, header_length: str) -> dict[str, Array]:
    size = int(header_length) if header_length else len(body)
    if not 0 < size <= len(body):
        raise ValueError(f"the header's length is {size} of {len(body)} bytes")
    binary, at = memoryview(body), size
    out: dict[str, Array] = {}
    for entry in _ANSWER.decode(body[:size]).outputs:
        shape = tuple(entry.shape)
        json_tensor.check_shape(entry.name, entry.datatype, shape, _LARGEST_BYTES)
        length = entry.parameters.get("binary_data_size")
        if isinstance(length, int):
            if not 0 <= length <= len(body) - at:
                raise ValueError(f"output {entry.name!r} claims {length} bytes, {len(body) - at} are left")
            out[entry.name] = from_wire(binary[at : at + length], entry.datatype, shape)
            at += length
        else:
            out[entry.name] = json_tensor.array_of_json(entry.name, entry.data, entry.datatype, shape, _LARGEST_BYTES)
    return out


def problem(body: bytes) -> str:
    """What an error's body says, in one line."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return body[:300].decode(errors="replace")
    if isinstance(document, dict) and isinstance(document.get("error"), str):
        return str(document["error"])
    return body[:300].decode(errors="replace")
