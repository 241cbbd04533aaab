"""`GET /v1/models`: the language models and their adapters, for OpenAI's clients; all models' names, for KServe's.

KServe's V1 protocol has the same paths. Its clients read `models`, and `name` and `ready` of one; OpenAI's read `data`,
and `id` of one. One answer holds both.
"""

from __future__ import annotations

from typing import Final

import orjson

from penstock.core.door import Door
from penstock.core.errors import NotReady, PenstockError, Unsupported
from penstock.core.language import Card
from penstock.core.model_names import every, find
from penstock.protocols import HttpRequest, HttpResponse
from penstock.protocols.openai_http.failures import request_id

_OWNER: Final = "penstock"


async def listed(http: HttpRequest, door: Door) -> HttpResponse:
    """The list."""
    entries = []
    for model in await every(door):
        entries.append(entry(model.card, "", door))
        entries += [entry(model.card, adapter, door) for adapter in model.card.info.adapter_names]
    document = {"object": "list", "data": entries, "models": door.models()}
    return HttpResponse(200, orjson.dumps(document), headers=request_id(http))


async def one(http: HttpRequest, door: Door) -> HttpResponse:
    """One model: 200, or 503 while it does not answer. Raises: NotFound."""
    name = http.match["model"]
    try:
        found = await find(door, name)
        document = {**entry(found.model.card, found.adapter, door), "id": name, "name": name, "ready": True}
    except Unsupported:
        document = {"name": name, "ready": True}
    except NotReady:
        return _not_ready(http, name)
    if "id" not in document and not door.model_ready(name):
        return _not_ready(http, name)
    return HttpResponse(200, orjson.dumps(document), headers=request_id(http))


def _not_ready(http: HttpRequest, name: str) -> HttpResponse:
    answer = {"name": name, "ready": False, "error": f"model '{name}' is not ready"}
    return HttpResponse(503, orjson.dumps(answer), headers=(*request_id(http), ("Retry-After", "1")))


def entry(card: Card, adapter: str, door: Door) -> dict[str, object]:
    """One entry of the list, of a model or of an adapter of it."""
    found: dict[str, object] = {
        "id": adapter or card.name,
        "object": "model",
        "created": card.created,
        "owned_by": _OWNER,
        "root": card.name,
        "parent": card.name if adapter else None,
        "max_model_len": card.info.context_tokens,
        "permission": [],
        "version": card.version,
        "generates": card.info.generates,
        "embeds": card.info.embeds,
    }
    try:
        description = door.describe(card.name)
    except PenstockError:  # it went a moment ago
        return found
    found["versions"] = [str(version) for version in description.versions]
    found["labels"] = {label: str(version) for label, version in description.labels.items()}
    return found
