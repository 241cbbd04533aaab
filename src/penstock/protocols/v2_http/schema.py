"""The bodies of V2 as OpenAPI operation objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Schema = Mapping[str, object]

_PARAMETERS: Final[Schema] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
}
_DATATYPES: Final = [
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "BYTES",
]  # fmt: skip
_TENSOR: Final[Schema] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "enum": _DATATYPES},
        "parameters": _PARAMETERS,
        "data": {"type": "array", "description": "Row-major, flat or nested as `shape`. FP16 and BF16: binary only."},
    },
}
_REQUEST: Final[Schema] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
            },
        },
    },
}
_RESPONSE: Final[Schema] = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "outputs": {"type": "array", "items": _TENSOR},
    },
}


def _streamed(operation: Schema) -> Schema:
    """The operation whose answer comes in pieces, each the data of a server-sent event."""
    responses = {"200": {"description": "Answers", "content": {"text/event-stream": {}}}}
    return {**operation, "responses": responses}


def _operation(request: Schema, response: Schema, description: str) -> Schema:
    return {
        "description": description,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {"200": {"description": "The answer", "content": {"application/json": {"schema": response}}}},
    }


INFER: Final = _operation(
    _REQUEST,
    _RESPONSE,
    "Tensors may follow the JSON in binary; the header `Inference-Header-Content-Length` is then the JSON's length.",
)
GENERATE: Final = _operation(
    {"type": "object", "properties": {"id": {"type": "string"}, "parameters": _PARAMETERS}},
    {"type": "object"},
    "Each key that is the name of an input is that input; all others are parameters.",
)
INFER_STREAM: Final = _streamed(INFER)
GENERATE_STREAM: Final = _streamed(GENERATE)
LOAD: Final = _operation(
    {
        "type": "object",
        "properties": {
            "parameters": {
                "type": "object",
                "properties": {"config": {"type": "string", "description": "A ModelConfig as JSON text."}},
                "additionalProperties": {"type": "string", "description": "`file:<path>`: base64"},
            }
        },
    },
    {"type": "object"},
    "Returns when the model answers. Files need `config` beside them.",
)
UNLOAD: Final = _operation(
    {"type": "object", "properties": {"parameters": _PARAMETERS}}, {"type": "object"}, "Returns at once."
)
