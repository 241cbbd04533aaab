"""Scores of texts: `/v1/rerank` (Cohere's and Jina's shape), `/v1/score` and `/v1/classify` (vLLM's)."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

import orjson

from penstock.core.door import Door
from penstock.core.errors import InvalidInput, TooLarge, Unsupported
from penstock.core.fields import Fields
from penstock.core.language import Scores
from penstock.core.language_calls import named_model
from penstock.protocols import HttpRequest, HttpResponse
from penstock.protocols.openai_http.answering import head_of, read_fields
from penstock.protocols.openai_http.failures import request_id
from penstock.protocols.openai_http.parameters import check_rest, ignored_header

MOST_TEXTS: Final = 2048
_LONGEST: Final = 1 << 24  # characters; the model's context decides

_RERANK: Final = frozenset({"model", "query", "documents", "top_n", "return_documents", "max_tokens_per_doc"})
_SCORE: Final = frozenset({"model", "text_1", "text_2", "queries", "documents", "data_1", "data_2"})
_CLASSIFY: Final = frozenset({"model", "input"})


async def rerank(http: HttpRequest, door: Door) -> HttpResponse:
    """Documents by how well they answer a query, the best first."""
    fields = read_fields(http)
    name, found = await named_model(fields, door)
    query = fields.text("query", _LONGEST)
    if query is None:
        raise fields.missing("query")
    documents = _documents(fields)
    top = fields.integer("top_n", 1, 1 << 31) or len(documents)
    shows = fields.flag("return_documents", True)
    if fields.take("max_tokens_per_doc") is not None:
        raise fields.unsupported("max_tokens_per_doc", "documents are not cut; leave it out")
    ignored = check_rest(fields, _RERANK)
    pairs = [(query, document) for document in documents]
    scores = await _scored(found.model.score(pairs, caller=http.caller, deadline=http.deadline), "documents")
    ranked = sorted(range(len(documents)), key=lambda at: -scores.values[at][0])[:top]
    results = [
        {"index": at, **({"document": {"text": documents[at]}} if shows else {}),
         "relevance_score": scores.values[at][0]}
        for at in ranked
    ]  # fmt: skip
    document = {
        "id": head_of("rerank", name, found.model).id,
        "model": name,
        "usage": {"prompt_tokens": scores.tokens, "total_tokens": scores.tokens},
        "results": results,
        "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": scores.tokens}},
    }
    return HttpResponse(200, orjson.dumps(document), headers=request_id(http) + ignored_header(ignored))


def _documents(fields: Fields) -> list[str]:
    values = fields.array("documents", MOST_TEXTS, least=1)
    if values is None:
        raise fields.missing("documents")
    found = []
    for at, value in enumerate(values):
        text: object = value
        if isinstance(value, dict):
            text = value.get("text")
        if not isinstance(text, str):
            raise fields.mistyped(f"documents[{at}]", value, "a string or an object with 'text'")
        found.append(text)
    return found


async def score(http: HttpRequest, door: Door) -> HttpResponse:
    """How well each second text answers its first: one against many, or pairs."""
    fields = read_fields(http)
    name, found = await named_model(fields, door)
    firsts, first = _either(fields, "text_1", "queries", "data_1")
    seconds, second = _either(fields, "text_2", "documents", "data_2")
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    if len(firsts) != len(seconds):
        raise fields.refused(
            second, f"as many texts as '{first}' has, {len(firsts)}, but got {len(seconds)}", "invalid_value"
        )
    ignored = check_rest(fields, _SCORE)
    pairs = list(zip(firsts, seconds, strict=True))
    scores = await _scored(found.model.score(pairs, caller=http.caller, deadline=http.deadline), second)
    data = [{"index": at, "object": "score", "score": row[0]} for at, row in enumerate(scores.values)]
    head = head_of("score", name, found.model)
    return _listed(http, head.id, head.created, name, data, scores.tokens, ignored)


async def classify(http: HttpRequest, door: Door) -> HttpResponse:
    """The likeliest label of each text, and the probabilities of all."""
    fields = read_fields(http)
    name, found = await named_model(fields, door)
    texts, _ = _either(fields, "input")
    ignored = check_rest(fields, _CLASSIFY)
    scores = await _scored(found.model.classify(texts, caller=http.caller, deadline=http.deadline), "input")
    labels = found.model.card.info.labels
    data = []
    for at, row in enumerate(scores.values):
        best = max(range(len(row)), key=row.__getitem__)
        label = labels[best] if best < len(labels) else f"LABEL_{best}"
        data.append({"index": at, "label": label, "probs": list(row), "num_classes": len(row)})
    head = head_of("classify", name, found.model)
    return _listed(http, head.id, head.created, name, data, scores.tokens, ignored)


def _either(fields: Fields, *names: str) -> tuple[list[str], str]:
    """The texts of the one of these members that is there, and its name."""
    for name in names:
        texts = fields.texts(name, MOST_TEXTS, _LONGEST)
        if texts:
            return list(texts), name
    raise fields.missing(names[0])


async def _scored(scores: Awaitable[Scores], parameter: str) -> Scores:
    try:
        return await scores
    except TooLarge as error:
        raise InvalidInput(error.message, parameter=parameter, problem="context_length_exceeded") from error
    except Unsupported as error:
        raise InvalidInput(error.message, parameter="model", problem="unsupported_model") from error


def _listed(
    http: HttpRequest, identity: str, created: int, model: str, data: object, tokens: int, ignored: list[str]
) -> HttpResponse:
    document = {
        "id": identity, "object": "list", "created": created, "model": model, "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }  # fmt: skip
    return HttpResponse(200, orjson.dumps(document), headers=request_id(http) + ignored_header(ignored))
