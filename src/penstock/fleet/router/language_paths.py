"""The surfaces of language models: their paths, where the model's name is in the body, the shape of their errors."""

from __future__ import annotations

import re
from typing import Final

import orjson

from penstock.core import errors
from penstock.core.errors import InvalidInput, PenstockError
from penstock.core.http_status import http_status

_BODIES: Final = frozenset(
    (
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
        "/v1/embeddings", "/embeddings", "/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize", "/v1/rerank",
        "/v2/rerank", "/rerank", "/v1/score", "/score", "/v1/classify", "/classify", "/generate", "/generate_stream",
        "/embed",
    )
)  # fmt: skip
_NAMED: Final = re.compile(r"/v2/models/[^/]+(?:/versions/[^/]+)?/generate(?:_stream)?")
_KEPT: Final = re.compile(r"/v1/(?:files|uploads|batches|responses|conversations|messages/batches)(?:/.*)?")
MODELS: Final = "/v1/models"

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES: Final[dict[type[PenstockError], str]] = {
    errors.Unauthenticated: "invalid_api_key", errors.PermissionDenied: "permission_denied",
    errors.NotFound: "model_not_found", errors.QuotaExceeded: "rate_limit_exceeded", errors.Overloaded: "overloaded",
    errors.NotReady: "model_not_ready", errors.WorkerLost: "engine_lost", errors.DeadlineExceeded: "deadline_exceeded",
    errors.TooLarge: "request_too_large", errors.Unsupported: "not_routed",
}  # fmt: skip


def named_in_body(path: str) -> bool:
    """Whether a POST there names its model in the body."""
    return path in _BODIES


def for_language(path: str) -> bool:
    """Whether a POST there is for a language model."""
    return path in _BODIES or _NAMED.fullmatch(path) is not None


def kept_by_one_server(path: str) -> bool:
    """Whether what is there lives on the server that made it: files, batches, stored answers."""
    return path not in _BODIES and _KEPT.fullmatch(path) is not None


def kept_answers(path: str) -> bool:
    """Whether a POST there may make an answer that is fetched later."""
    return path == "/v1/responses"


def error_body(path: str, error: PenstockError) -> bytes:
    """The body of an error as clients of that path read it: OpenAI's and Anthropic's shapes, else Penstock's."""
    if path not in _BODIES and not path.startswith(MODELS + "/") and not kept_by_one_server(path):
        return orjson.dumps({"error": error.message})
    status = http_status(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    if path.startswith("/v1/messages"):
        kind = {"server_error": "overloaded_error" if status == 503 else "api_error"}.get(kind, kind)
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": error.message}})
    parameter = problem = ""
    if isinstance(error, InvalidInput):
        parameter, problem = error.parameter, error.problem
    code = problem or next((_CODES[one] for one in type(error).__mro__ if one in _CODES), "")
    if code == "model_not_found":
        parameter = "model"
    return orjson.dumps(
        {"error": {"message": error.message, "type": kind, "param": parameter or None, "code": code or None}}
    )
