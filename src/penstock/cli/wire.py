"""V2 inference calls as the client side writes and reads them: JSON, with tensors in binary where that is better."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.core.errors import Internal
from penstock.core.tensor import Array, TensorSpec, from_wire, to_wire

# More values than this go in binary: a JSON number costs about 20 bytes and a parse, a binary one 4 bytes and neither.
BINARY_ABOVE = 1000
NO_JSON_FORM = ("FP16", "BF16")


def specs(metadata: Mapping[str, Any], key: str = "inputs") -> list[TensorSpec]:
    """The tensors of a V2 metadata document."""
    return [
        TensorSpec(
            str(item["name"]),
            str(item["datatype"]),
            tuple(int(size) for size in item["shape"]),
            optional=bool((item.get("parameters") or {}).get("optional", item.get("optional", False))),
        )
        for item in metadata[key]
    ]


def encode(inputs: Mapping[str, Array], known: Sequence[TensorSpec]) -> tuple[bytes, dict[str, str]]:
    """A request's body and headers. Answers are asked for in binary, which keeps every datatype exact."""
    datatypes = {spec.name: spec.datatype for spec in known}
    described: list[dict[str, object]] = []
    tail: list[bytes] = []
    for name, array in inputs.items():
        datatype = datatypes[name]
        item: dict[str, object] = {"name": name, "shape": list(array.shape), "datatype": datatype}
        utf8 = datatype != "BYTES" or all(_is_text(value) for value in array.ravel().tolist())
        if array.size > BINARY_ABOVE or datatype in NO_JSON_FORM or not utf8:
            data = bytes(to_wire(array, datatype))
            item["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        elif datatype == "BYTES":
            item["data"] = [value.decode() for value in array.ravel().tolist()]
        else:
            item["data"] = array.ravel().tolist()
        described.append(item)
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream" if tail else "application/json"}
    if tail:
        headers["Inference-Header-Content-Length"] = str(len(head))
    return b"".join([head, *tail]), headers


def decode(headers: Mapping[str, str], body: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """The answer's document without its outputs, and the outputs.

    Raises:
        Internal: the answer is not what the protocol says.
    """
    try:
        length = int(headers.get("inference-header-content-length", len(body)))
        document = json.loads(body[:length])
        outputs: dict[str, Array] = {}
        at = length
        for item in document.pop("outputs"):
            shape = tuple(item["shape"])
            size = (item.get("parameters") or {}).get("binary_data_size")
            if size is None:
                spec = TensorSpec(item["name"], item["datatype"], shape)
                outputs[spec.name] = _from_json(item["data"], spec)
            else:
                outputs[item["name"]] = from_wire(body[at : at + size], item["datatype"], shape)
                at += size
    except (ValueError, KeyError, TypeError) as error:
        raise Internal(f"the server's answer is no V2 answer: {error}") from error
    return document, outputs


def _from_json(data: object, spec: TensorSpec) -> Array:
    from penstock.cli.inputs import from_json

    text = json.dumps({"inputs": [{"name": spec.name, "shape": list(spec.shape), "data": data}]})
    return from_json(text, [spec])[spec.name]


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
