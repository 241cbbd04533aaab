"""`/v1/batches`: files of requests that are answered while nobody waits, and how a line of one is answered."""

from __future__ import annotations

from typing import Final

import orjson

from penstock.core.batches import Batch, LineAnswer, LineUsage
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, NotFound, PenstockError
from penstock.core.fields import Fields
from penstock.core.json_body import read_object
from penstock.protocols import HttpRequest, HttpResponse
from penstock.protocols.openai_http import chat, embeddings, responses, texts
from penstock.protocols.openai_http.answering import read_fields
from penstock.protocols.openai_http.failures import refused
from penstock.protocols.openai_http.files import KEEP_S, answered, looked_up, page, query_of
from penstock.protocols.openai_http.parameters import check_rest

_HANDLERS: Final = {
    "/v1/chat/completions": chat.complete,
    "/v1/completions": texts.complete,
    "/v1/embeddings": embeddings.embed,
    "/v1/responses": responses.create,
}
_LOWEST: Final = (1 << 32) - 1  # level 0, of everybody who asks for none, counts as 1 << 31
_KNOWN: Final = frozenset({"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"})
_MOST_PAGE: Final = 100  # OpenAI's own, as the next one
_PAGE: Final = 20
_STATUSES: Final = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


async def create(http: HttpRequest, door: Door) -> HttpResponse:
    """The batch, which begins."""
    fields = read_fields(http)
    file = fields.text("input_file_id", 128)
    if file is None:
        raise fields.missing("input_file_id")
    endpoint = fields.one_of("endpoint", tuple(_HANDLERS))
    if endpoint is None:
        raise fields.missing("endpoint")
    if fields.one_of("completion_window", ("24h",)) is None:
        raise fields.missing("completion_window")
    metadata: dict[str, str] = {}
    for name, value in (fields.members("metadata") or {}).items():
        if not isinstance(value, str) or len(name) > 64 or len(value) > 512 or len(metadata) == 16:
            raise fields.refused("metadata", "at most 16 names of 64 characters, with texts of 512", "invalid_value")
        metadata[name] = value
    keep_s = _keep_s(fields)
    check_rest(fields, _KNOWN)
    try:
        return answered(http, batch_object(await door.batches().create(http.caller, endpoint, file, metadata, keep_s)))
    except NotFound as error:
        raise InvalidInput(error.message, parameter="input_file_id", problem="invalid_value") from error


def _keep_s(fields: Fields) -> float | None:
    inner = fields.inner("output_expires_after")
    if inner is None:
        return None
    if inner.one_of("anchor", ("created_at",)) is None:
        raise inner.missing("anchor")
    seconds = inner.integer("seconds", *KEEP_S)
    if seconds is None:
        raise inner.missing("seconds")
    return float(seconds)


async def listed(http: HttpRequest, door: Door) -> HttpResponse:
    """The caller's batches, the newest first."""
    batches = await door.batches().listed(http.caller)
    return page(http, query_of(http), [batch_object(batch) for batch in batches], _MOST_PAGE, _PAGE)


async def one(http: HttpRequest, door: Door) -> HttpResponse:
    """How far the batch is."""
    return await looked_up(http, door.batches().batch(http.caller, http.match["batch"]), batch_object)


async def cancel(http: HttpRequest, door: Door) -> HttpResponse:
    """The batch, which ends soon."""
    return await looked_up(http, door.batches().cancel(http.caller, http.match["batch"]), batch_object)


def batch_object(batch: Batch) -> dict[str, object]:
    """A batch as clients read it."""
    faults = [
        {"code": fault.code, "message": fault.message, "line": fault.line, "param": fault.parameter}
        for fault in batch.faults
    ]
    return {
        "id": batch.id, "object": "batch", "endpoint": batch.endpoint, "status": batch.status,
        "errors": {"object": "list", "data": faults} if faults else None,
        "input_file_id": batch.input_file, "output_file_id": batch.output_file, "error_file_id": batch.error_file,
        "completion_window": "24h", "created_at": batch.created_at, "expires_at": batch.expires_at,
        **{f"{status}_at": batch.reached.get(status) for status in _STATUSES},
        "request_counts": {"total": batch.total, "completed": batch.answered, "failed": batch.refused},
        "metadata": batch.metadata or None, "model": None, "usage": {
            "input_tokens": batch.usage.prompt, "input_tokens_details": {"cached_tokens": batch.usage.cached},
            "output_tokens": batch.usage.completion,
            "output_tokens_details": {"reasoning_tokens": batch.usage.reasoning},
            "total_tokens": batch.usage.prompt + batch.usage.completion,
        },
    }  # fmt: skip


async def answer_line(endpoint: str, body: bytes, caller: str, deadline: float, door: Door) -> LineAnswer:
    """What the route `endpoint` answers to `body`, behind all that does not come from a batch."""
    http = HttpRequest("POST", endpoint, {}, body=body, deadline=deadline, caller=caller, priority=_LOWEST)
    try:
        members = read_object(body)
        for name in ("stream", "background"):
            if members.get(name):
                raise InvalidInput(f"Unsupported value: '{name}': lines of a batch are answered whole",
                                   parameter=name, problem="unsupported_value")  # fmt: skip
        response = await _HANDLERS[endpoint](http, door)
        assert isinstance(response, HttpResponse)
    except PenstockError as error:
        response = refused(error, http)
    headers = {name.lower(): value for name, value in response.headers}
    wait = None
    if response.status in (429, 503) and "x-should-retry" not in headers:
        wait = float(headers.get("retry-after", "1"))
    whole = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    return LineAnswer(response.status, whole, headers.get("x-request-id", ""), wait, _usage(response.status, whole))


def _usage(status: int, whole: bytes) -> LineUsage:
    """What the answer says, in chat's words or in those of responses."""
    used = orjson.loads(whole).get("usage") if status == 200 else None
    if not used:
        return LineUsage()
    prompt, completion = ("input", "output") if "input_tokens" in used else ("prompt", "completion")
    return LineUsage(
        used.get(f"{prompt}_tokens", 0), (used.get(f"{prompt}_tokens_details") or {}).get("cached_tokens", 0),
        used.get(f"{completion}_tokens", 0),
        (used.get(f"{completion}_tokens_details") or {}).get("reasoning_tokens", 0),
    )  # fmt: skip
