"""Finds out what a body is and makes the model's inputs of it.

curl labels everything as a form, so the bytes are asked first: .npy files and pictures know themselves. Then comes a
Content-Type that says something, then what the text looks like, with the model's inputs to judge by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from penstock.core.errors import InvalidInput
from penstock.core.json_body import read_json
from penstock.core.json_rows import UNDECLARED, columns_of_rows, inputs_of_columns
from penstock.core.servable import Signature
from penstock.core.tensor import Array, TensorSpec
from penstock.protocols import Buffer
from penstock.protocols.predict_http.npy import MAGIC, read_npy
from penstock.protocols.predict_http.table import read_csv

_PICTURES: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_FILES: Final = ("image/", "audio/", "video/", "application/octet-stream", "application/pdf")
_JSON_BEGINS: Final = b'[{"-0123456789tfn'
_ANY: Final = msgspec.json.Decoder(object)


def read(body: Buffer, content_type: str, signature: Signature) -> dict[str, Array]:
    """The inputs in `body`.

    Raises:
        InvalidInput: nothing that this model takes; the message says what it does take.
    """
    specs = signature.inputs
    try:
        return _read(memoryview(body), content_type.partition(";")[0].strip().lower(), specs)
    except InvalidInput as error:
        if not specs:
            raise
        takes = ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs)
        raise type(error)(f"{error.message} (the model takes {takes})") from None


def _read(body: memoryview, kind: str, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    if not body:
        raise InvalidInput("the body is empty")
    head = bytes(body[:64])
    if head.startswith(MAGIC):
        spec = _only(specs, "a .npy file")
        return {spec.name: read_npy(body, spec)}
    if kind.startswith(_FILES) or head.startswith(_PICTURES):
        return _file(body, specs)
    if kind == "text/csv":
        return read_csv(_text(body), specs)
    is_text = len(specs) == 1 and specs[0].datatype == "BYTES"
    if kind == "text/plain" and is_text:
        return _file(body, specs)
    begin = head.lstrip()[:1]
    if kind.endswith("json") or (begin and begin in _JSON_BEGINS):
        try:
            value = read_json(body, _ANY)
        except InvalidInput:
            if kind.endswith("json") or begin in (b"[", b"{"):
                raise
        else:
            if kind.endswith("json") or not is_text or isinstance(value, str | list | dict):
                return _inputs(value, specs)
    return _file(body, specs) if is_text else read_csv(_text(body), specs)


def _inputs(value: object, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The inputs of parsed JSON: what is under "inputs" (unless that is an input's name), rows, or the value itself."""
    if isinstance(value, dict) and "inputs" in value and all(spec.name != "inputs" for spec in specs):
        if len(value) > 1:
            raise InvalidInput('beside "inputs" nothing else is read here')
        value = value["inputs"]
    if isinstance(value, list) and value and (len(specs) > 1 or isinstance(value[0], dict)):
        return columns_of_rows(value, specs)
    return inputs_of_columns(value, specs)


def _only(specs: Sequence[TensorSpec], what: str) -> TensorSpec:
    if not specs:
        raise InvalidInput(f"{what} has no name: {UNDECLARED}")
    if len(specs) != 1:
        raise InvalidInput(f"{what} is one input, the model has {len(specs)}: name them in JSON")
    return specs[0]


def _file(body: memoryview, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The whole body as the one element of a BYTES input."""
    spec = _only(specs, "a file")
    if spec.datatype != "BYTES":
        raise InvalidInput("the body is a file of bytes, but the model takes numbers: send them as JSON, CSV or .npy")
    element = np.empty((1,) * len(spec.shape), dtype=object)
    element[...] = bytes(body)
    return {spec.name: element}


def _text(body: memoryview) -> str:
    try:
        return bytes(body).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput("the body is no UTF-8 text, no .npy file and no picture") from None
