"""`POST /v1/embeddings`: vectors of texts, as numbers or as base64 of little-endian 32-bit floats."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import orjson

from penstock.core.consumer_groups import choose, groups
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, NotFound, TooLarge, Unsupported
from penstock.core.fields import Fields, token_ids
from penstock.core.language import EngineInfo, LanguageModel, Vectors
from penstock.core.language_calls import named_model
from penstock.core.model_names import Found
from penstock.protocols import HttpRequest, HttpResponse
from penstock.protocols.openai_http.answering import read_fields
from penstock.protocols.openai_http.failures import request_id
from penstock.protocols.openai_http.parameters import check_rest, ignored_header

MOST_INPUTS: Final = 2048  # OpenAI's own limit
_MOST_IDS: Final = 1 << 20

_KNOWN: Final = frozenset({"model", "input", "encoding_format", "dimensions"})

Input = str | tuple[int, ...]


async def embed(http: HttpRequest, door: Door) -> HttpResponse:
    """The vectors, in the order of the texts."""
    fields = read_fields(http)
    name, found = await _embedder(fields, door)
    inputs = read_inputs(fields)
    form = fields.one_of("encoding_format", ("float", "base64")) or "float"
    size = fields.integer("dimensions", 1, 1 << 20)
    ignored = check_rest(fields, _KNOWN)
    info = found.model.card.info
    if found.adapter:
        raise InvalidInput(f"the adapter {name!r} does not embed; name the model {found.model.card.name!r}",
                           parameter="model", problem="unsupported_model")  # fmt: skip
    _check(fields, inputs, size, info)
    values = shortened(await _vectors(found.model, inputs, http), size)
    headers = request_id(http) + ignored_header(ignored)
    return HttpResponse(200, body(values.vectors, values.tokens, name, form), headers=headers)


async def _embedder(fields: Fields, door: Door) -> tuple[str, Found]:
    """The model that `model` names; it may be a consumer group, as Titan Takeoff's clients write it here."""
    try:
        return await named_model(fields, door)
    except NotFound:
        group = str(fields.take("model"))
        if group not in await groups(door):
            raise
        return group, Found(await choose(door, group, lambda card: card.info.embeds, "make vectors"))


class Shortened:
    """Vectors as an array (texts, size) float32, and the tokens they took."""

    __slots__ = ("tokens", "vectors")

    def __init__(self, vectors: np.ndarray[Any, np.dtype[np.float32]], tokens: int) -> None:
        self.vectors = vectors
        self.tokens = tokens


async def _vectors(model: LanguageModel, inputs: Sequence[Input], http: HttpRequest) -> Vectors:
    try:
        return await model.embed(inputs, caller=http.caller, deadline=http.deadline)
    except TooLarge as error:
        raise InvalidInput(error.message, parameter="input", problem="context_length_exceeded") from error
    except Unsupported as error:
        raise InvalidInput(error.message, parameter="model", problem="unsupported_model") from error


def read_inputs(fields: Fields, name: str = "input") -> list[Input]:
    """A text, texts, token ids, or lists of these. Raises: InvalidInput."""
    value = fields.take(name)
    if value is None:
        raise fields.missing(name)
    if isinstance(value, str):
        values: list[object] = [value]
    else:
        values = fields.array(name, _MOST_IDS, least=1) or []
        if type(values[0]) is int:
            return [token_ids(values, name)]
    if len(values) > MOST_INPUTS:
        raise fields.refused(
            name, f"an array with maximum length {MOST_INPUTS}, but got one with length {len(values)}",
            "array_above_max_length",
        )  # fmt: skip
    inputs: list[Input] = []
    for at, one in enumerate(values):
        if isinstance(one, str) and one:
            inputs.append(one)
        elif isinstance(one, list) and one:
            inputs.append(token_ids(one, f"{name}[{at}]"))
        elif one in ("", []):
            raise fields.refused(f"{name}[{at}]" if len(values) > 1 else name, "something that is not empty", "empty")
        else:
            raise fields.mistyped(f"{name}[{at}]", one, "a string or an array of token ids")
    return inputs


def _check(fields: Fields, inputs: Sequence[Input], size: int | None, info: EngineInfo) -> None:
    if not info.embeds:
        raise InvalidInput("this model makes no embeddings", parameter="model", problem="unsupported_model")
    if size is not None and info.embedding_size and size > info.embedding_size:
        raise fields.refused(
            "dimensions", f"a value <= {info.embedding_size}, the model's own, but got {size}",
            "integer_above_max_value",
        )  # fmt: skip
    for at, one in enumerate(inputs):
        if not isinstance(one, str) and info.vocabulary and max(one) >= info.vocabulary:
            raise fields.refused(
                f"input[{at}]",
                f"token ids of this model's own tokenizer, all below {info.vocabulary}, but got {max(one)}; send text",
                "invalid_value",
            )


def shortened(vectors: Vectors, size: int | None) -> Shortened:
    """The first `size` numbers of each vector, of length 1 again, as OpenAI shortens its own."""
    values = np.asarray(vectors.values, np.float32)
    if size is not None and size < values.shape[1]:
        values = values[:, :size]
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        values = np.divide(values, np.where(lengths > 0, lengths, 1), dtype=np.float32)
    return Shortened(np.ascontiguousarray(values, "<f4"), vectors.tokens)


def body(values: np.ndarray[Any, np.dtype[np.float32]], tokens: int, model: str, form: str) -> bytes:
    """The answer. `form` is float or base64."""
    data = [
        {
            "object": "embedding",
            "index": at,
            "embedding": base64.b64encode(row.tobytes()).decode() if form == "base64" else row,
        }
        for at, row in enumerate(values)
    ]
    document = {
        "object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }  # fmt: skip
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
