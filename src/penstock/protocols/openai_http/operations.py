"""What the OpenAPI document says of this protocol's routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_TEXT: Final[Mapping[str, object]] = {"type": "string"}
_TEXTS: Final[Mapping[str, object]] = {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_IDS: Final[Mapping[str, object]] = {"type": "array", "items": {"type": "integer"}}
_MESSAGES: Final[Mapping[str, object]] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"oneOf": [_TEXT, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]},
        },
    },
}
_SAMPLING: Final[Mapping[str, object]] = {
    "stream": {"type": "boolean"},
    "max_tokens": {"type": "integer", "minimum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 128},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": {"type": "integer"},
    "stop": _TEXTS,
    "response_format": {"type": "object"},
}
_ENDPOINTS: Final = ("chat/completions", "completions", "embeddings", "responses")
_BODIES: Final[Mapping[str, tuple[tuple[str, ...], Mapping[str, object]]]] = {
    "chat/completions": (("messages",), {"messages": _MESSAGES, **_SAMPLING, "tools": {"type": "array"}}),
    "responses": (
        ("input",),
        {
            "input": {"oneOf": [_TEXT, {"type": "array", "items": {"type": "object"}}]},
            "instructions": _TEXT,
            "max_output_tokens": {"type": "integer", "minimum": 1},
            "temperature": {"type": "number", "minimum": 0, "maximum": 2},
            "text": {"type": "object"},
            "tools": {"type": "array"},
            "stream": {"type": "boolean"},
        },
    ),
    "completions": (("prompt",), {"prompt": {}, **_SAMPLING, "echo": {"type": "boolean"}}),
    "embeddings": (
        ("input",),
        {
            "input": {},
            "encoding_format": {"type": "string", "enum": ["float", "base64"]},
            "dimensions": {"type": "integer", "minimum": 1},
        },
    ),
    "tokenize": ((), {"prompt": _TEXT, "messages": _MESSAGES, "add_special_tokens": {"type": "boolean"}}),
    "detokenize": (("tokens",), {"tokens": _IDS}),
    "rerank": (
        ("query", "documents"),
        {"query": _TEXT, "documents": {"type": "array"}, "top_n": {"type": "integer", "minimum": 1}},
    ),
    "score": (("text_1", "text_2"), {"text_1": _TEXTS, "text_2": _TEXTS}),
    "classify": (("input",), {"input": _TEXTS}),
    "batches": (
        ("input_file_id", "endpoint", "completion_window"),
        {
            "input_file_id": _TEXT,
            "endpoint": {"type": "string", "enum": [f"/v1/{name}" for name in _ENDPOINTS]},
            "completion_window": {"type": "string", "enum": ["24h"]},
            "metadata": {"type": "object", "additionalProperties": _TEXT},
            "output_expires_after": {"type": "object"},
        },
    ),
}
_STREAMED: Final = frozenset({"chat/completions", "completions", "responses"})


def _error(description: str) -> Mapping[str, object]:
    member = {"type": "string"}
    or_null = {"type": ["string", "null"]}
    error = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {"message": member, "type": member, "param": or_null, "code": or_null},
    }
    # A request that is malformed before it belongs to a protocol is told so in words.
    schema = {"type": "object", "required": ["error"], "properties": {"error": {"anyOf": [error, member]}}}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def reading(*failures: str, content: str = "application/json") -> Mapping[str, object]:
    """The operation object of a route that only reads; `failures` are the statuses that are errors in this API's shape.
    503 is not: KServe's clients read it."""
    an_object = {"content": {"application/json": {"schema": {"type": "object"}}}}
    whole = an_object if content == "application/json" else {"content": {content: {"schema": {"type": "string"}}}}
    return {
        "responses": {
            "200": {"description": "The answer", **whole},
            **{status: _error("An error") for status in failures},
            "503": {"description": "It does not answer now", **an_object},
        }
    }


def of(name: str) -> Mapping[str, object]:
    """The operation object of the route that ends in `name`."""
    required, members = _BODIES[name]
    schema = {
        "type": "object",
        "required": list(required),
        "properties": {"model": {"type": "string"}, **members},
    }
    content: dict[str, object] = {"application/json": {"schema": {"type": "object"}}}
    if name in _STREAMED:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    failures = {"400": "A parameter is wrong", "401": "No key", "404": "No such model", "429": "The quota is used up"}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "The answer", "content": content},
            **{status: _error(text) for status, text in failures.items()},
        },
    }


UPLOAD: Final[Mapping[str, object]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                }
            }
        },
    },
    "responses": {
        "200": {"description": "The file", "content": {"application/json": {"schema": {"type": "object"}}}},
        **{
            status: _error(text)
            for status, text in {
                "400": "The form is wrong",
                "401": "No key",
                "413": "Too large",
                "429": "Your room is full",
            }.items()
        },
    },
}
