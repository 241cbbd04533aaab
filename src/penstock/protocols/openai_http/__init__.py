"""OpenAI's API for language models, and what vLLM, Cohere and Jina added to it.

`chat`, `texts` and `responses` read requests, and those with `_wire` write answers; `answering` is what lies between.
`parameters` says what becomes of every parameter. The errors are in `failures`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

import orjson

from penstock.core.batches import LineAnswer
from penstock.core.door import Door
from penstock.core.errors import PenstockError
from penstock.core.responses import AnswersWishes
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, Route
from penstock.protocols.openai_http import (
    background,
    batches,
    chat,
    embeddings,
    files,
    models,
    operations,
    ranking,
    responses,
    stored_responses,
    texts,
    tokens,
)
from penstock.protocols.openai_http.failures import refused, request_id


class OpenAiHttp:
    """The protocol's routes and its errors."""

    name = "openai_http"
    title = "OpenAI"

    def routes(self) -> Sequence[Route]:
        """Every path of the protocol. `/health` tells no more than `/readyz` does, and probes have no key."""
        twice = [
            CallRoute("POST", f"{prefix}/{name}", handle, summary, openapi=operations.of(name))
            for prefix in ("/v1", "")
            for name, handle, summary in (
                ("tokenize", tokens.tokenize, "The token ids of a text or a conversation"),
                ("detokenize", tokens.detokenize, "The text of token ids"),
                ("rerank", ranking.rerank, "Order documents by how well they answer a query"),
                ("score", ranking.score, "Score pairs of texts"),
            )
        ]
        return [
            CallRoute("POST", "/v1/chat/completions", chat.complete, "Answer a conversation",
                      openapi=operations.of("chat/completions")),
            CallRoute("POST", "/v1/completions", texts.complete, "Continue a text",
                      openapi=operations.of("completions")),
            CallRoute("POST", "/v1/responses", responses.create, "Answer a conversation, as items",
                      openapi=operations.of("responses")),
            CallRoute("GET", "/v1/responses/{response}", stored_responses.one, "A response that was kept",
                      openapi=operations.reading("400", "401", "404")),
            CallRoute("DELETE", "/v1/responses/{response}", stored_responses.remove, "Delete a response",
                      openapi=operations.reading("401", "404")),
            CallRoute("POST", "/v1/responses/{response}/cancel", stored_responses.cancel, "End a response for which "
                      "nobody waits", openapi=operations.reading("400", "401", "404")),
            CallRoute("GET", "/v1/responses/{response}/input_items", stored_responses.input_items,
                      "The conversation before a response", openapi=operations.reading("400", "401", "404")),
            CallRoute("POST", "/v1/embeddings", embeddings.embed, "Vectors of texts",
                      openapi=operations.of("embeddings")),
            CallRoute("POST", "/v1/classify", ranking.classify, "Labels of texts", openapi=operations.of("classify")),
            CallRoute("POST", "/v2/rerank", ranking.rerank, "Order documents, at Cohere's path",
                      openapi=operations.of("rerank")),
            *twice,
            CallRoute("GET", "/v1/models", models.listed, "The models that answer", openapi=operations.reading("401")),
            CallRoute("GET", "/v1/models/{model}", models.one, "One model, and whether it answers",
                      openapi=operations.reading("401", "404")),
            CallRoute("POST", "/v1/files", files.upload, "Keep a file of requests", openapi=operations.UPLOAD),
            CallRoute("GET", "/v1/files", files.listed, "Your files", openapi=operations.reading("400", "401")),
            CallRoute("GET", "/v1/files/{file}", files.one, "One file", openapi=operations.reading("401", "404")),
            CallRoute("GET", "/v1/files/{file}/content", files.content, "What is in a file",
                      openapi=operations.reading("401", "404", content="application/octet-stream")),
            CallRoute("DELETE", "/v1/files/{file}", files.remove, "Delete a file",
                      openapi=operations.reading("401", "404", "409")),
            CallRoute("POST", "/v1/batches", batches.create, "Answer a file of requests, behind everybody who waits",
                      openapi=operations.of("batches")),
            CallRoute("GET", "/v1/batches", batches.listed, "Your batches", openapi=operations.reading("400", "401")),
            CallRoute("GET", "/v1/batches/{batch}", batches.one, "How far a batch is",
                      openapi=operations.reading("401", "404")),
            CallRoute("POST", "/v1/batches/{batch}/cancel", batches.cancel, "End a batch",
                      openapi=operations.reading("401", "404", "409")),
            CallRoute("GET", "/version", version, "Penstock's version"),
            CallRoute("GET", "/health", health, "Whether every model answers", public=True),
        ]  # fmt: skip

    async def answer_line(self, endpoint: str, body: bytes, caller: str, deadline: float, door: Door) -> LineAnswer:
        """See `protocols.AnswersLines`."""
        return await batches.answer_line(endpoint, body, caller, deadline, door)

    def wishes(self, door: Door) -> AnswersWishes:
        """See `protocols.AnswersLines`."""
        return background.BackgroundResponses(door)

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return refused(error, request)


async def version(http: HttpRequest, door: Door) -> HttpResponse:
    """The version, as vLLM's clients look for it."""
    try:
        found = importlib.metadata.version("penstock")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was not installed
        found = "0"
    return HttpResponse(200, orjson.dumps({"version": found}), headers=request_id(http))


async def health(http: HttpRequest, door: Door) -> HttpResponse:
    """200 or 503, with nothing in it, as vLLM answers probes."""
    return HttpResponse(200 if door.ready() else 503, b"", headers=(("Cache-Control", "no-store"),))


plug = OpenAiHttp()
