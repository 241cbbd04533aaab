"""What the OpenAPI document says of this protocol's routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_TEXT: Final[Mapping[str, object]] = {"type": "string"}
_TEXT_OR_BLOCKS: Final[Mapping[str, object]] = {"oneOf": [_TEXT, {"type": "array", "items": {"type": "object"}}]}
_PROMPT: Final[Mapping[str, object]] = {
    "model": _TEXT,
    "messages": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["role", "content"],
            "properties": {
                "role": {"type": "string", "enum": ["user", "assistant", "system"]}, "content": _TEXT_OR_BLOCKS,
            },
        },
    },
    "system": _TEXT_OR_BLOCKS,
    "tools": {"type": "array", "items": {"type": "object"}},
    "tool_choice": {"type": "object"},
    "thinking": {"type": "object"},
}  # fmt: skip
_FAILURES: Final = {"400": "A parameter is wrong", "401": "No key", "404": "No such model",
                    "429": "The quota is used up"}  # fmt: skip


def _error(description: str) -> Mapping[str, object]:
    error = {"type": "object", "required": ["type", "message"], "properties": {"type": _TEXT, "message": _TEXT}}
    schema = {
        "type": "object",
        "required": ["type", "error", "request_id"],
        "properties": {"type": {"const": "error"}, "error": error, "request_id": _TEXT},
    }
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _operation(required: list[str], more: Mapping[str, object], streamed: bool) -> Mapping[str, object]:
    schema = {"type": "object", "required": required, "properties": {**_PROMPT, **more}}
    content: dict[str, object] = {"application/json": {"schema": {"type": "object"}}}
    if streamed:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "The answer", "content": content},
            **{status: _error(text) for status, text in _FAILURES.items()},
        },
    }


MESSAGES: Final = _operation(
    ["messages", "max_tokens"],
    {
        "max_tokens": {"type": "integer", "minimum": 1},
        "stop_sequences": {"type": "array", "items": _TEXT},
        "temperature": {"type": "number", "minimum": 0, "maximum": 1},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "top_k": {"type": "integer", "minimum": 0},
        "stream": {"type": "boolean"},
        "output_config": {"type": "object"},
    },
    streamed=True,
)
COUNT: Final = _operation(["messages"], {}, streamed=False)
