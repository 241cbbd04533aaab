"""Titan Takeoff's API, for `takeoff-client` and what is built on it: generation, classification, tokens, readers.

A reader is a model of this server, its id the model's name. All of Takeoff's ports are this one:
`TakeoffClient(port=P, mgmt_port=P, oai_port=P)`. Values that are left out are Takeoff's own defaults: 128 tokens, the
likeliest one each time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final, cast

import orjson

from penstock.core.compression import decompress
from penstock.core.consumer_groups import PRIMARY, choose, group_of, groups
from penstock.core.door import Door
from penstock.core.errors import AlreadyExists, InvalidInput, NotFound, PenstockError, Unsupported
from penstock.core.fields import Fields
from penstock.core.http_status import error_headers, http_status
from penstock.core.json_body import error_json, read_object
from penstock.core.language import Ask, Event, Finished, Format, LanguageModel, Message, Sampling, Text, Usage
from penstock.language.merging import merged
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, HttpStream, Route

_MOST_PROMPTS: Final = 1000  # as Takeoff's TAKEOFF_MAX_USER_BATCH_SIZE
_MOST_CHARACTERS: Final = 150_000  # of one prompt, as its TAKEOFF_MAX_PROMPT_STRING_BYTES
_MOST_TOKENS: Final = 1 << 20
_LONGEST_NAME: Final = 512
_LINE_END: Final = re.compile(r"\r\n|\r|\n")  # each ends an event's line, and readers make all of them "\n"

# How the members of an Ask are called here, for errors.
_NAMES: Final = {
    "sampling.temperature": "sampling_temperature", "sampling.top_p": "sampling_topp",
    "sampling.top_k": "sampling_topk", "sampling.repetition_penalty": "repetition_penalty",
    "sampling.no_repeat_ngram": "no_repeat_ngram_size", "sampling.min_tokens": "min_new_tokens",
    "max_tokens": "max_new_tokens", "adapter": "lora_id", "prompt": "text", "messages": "text",
}  # fmt: skip


class TakeoffHttp:
    """The routes and their errors."""

    name = "takeoff_http"
    title = "Titan Takeoff"

    def routes(self) -> Sequence[Route]:
        """Inference, then what Takeoff has on its management port."""
        return [
            CallRoute("POST", "/generate", generate, "Texts for prompts"),
            CallRoute("POST", "/generate_stream", generate_stream, "Texts for prompts, as they come"),
            CallRoute("POST", "/image_generate", no_images, "Refused: no model takes images"),
            CallRoute("POST", "/image_generate_stream", no_images, "Refused: no model takes images"),
            CallRoute("POST", "/partition_document", no_images, "Refused: no model takes documents"),
            CallRoute("POST", "/partition_document_stream", no_images, "Refused: no model takes documents"),
            CallRoute("POST", "/embed", embed, "Vectors of texts"),
            CallRoute("POST", "/classify", classify, "Labels of texts, or scores of pairs of texts"),
            CallRoute("POST", "/tokenize/{reader}", tokenize, "The tokens of a text"),
            CallRoute("POST", "/detokenize/{reader}", detokenize, "The text of tokens"),
            CallRoute("POST", "/chat_template/{reader}", chat_template, "The prompts that conversations become"),
            CallRoute("GET", "/reader_groups", reader_groups, "Every reader, by consumer group"),
            CallRoute("POST", "/reader", create_reader, "Load a model"),
            CallRoute("DELETE", "/reader/{reader}", delete_reader, "Unload a model"),
            CallRoute("GET", "/config/{reader}", reader_config, "What a reader was started with"),
            CallRoute("GET", "/status", status, "Whether the readers answer"),
        ]

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        """`{"error": …}`. What a model cannot do is the caller's to change: 400."""
        code = 400 if isinstance(error, Unsupported) else http_status(error)
        return HttpResponse(code, error_json(error), headers=error_headers(error))


def _fields(http: HttpRequest) -> Fields:
    body = decompress(http.body, http.header(b"content-encoding"), http.limits.decompressed_bytes)
    http.body = b""
    return Fields(read_object(body))


def _texts(fields: Fields) -> tuple[list[str], bool]:
    """The prompts of `text`, and whether they came as a list."""
    several = isinstance(fields.take("text"), list)
    found = fields.texts("text", _MOST_PROMPTS, _MOST_CHARACTERS)
    if not found:
        raise fields.missing("text")
    return list(found), several


# --- generation ---


async def _asks(http: HttpRequest, door: Door) -> tuple[LanguageModel, list[Ask], bool, bool]:
    """The model, an ask for each prompt, whether the prompts were a list, and whether metadata is wanted."""
    fields = _fields(http)
    texts, several = _texts(fields)
    model = await _model(fields, door)
    template = fields.flag("use_chat_template")
    metadata = fields.flag("return_metadata")
    most_prompt_tokens = fields.integer("prompt_max_tokens", 1, _MOST_TOKENS)
    fields.one_of("constrained_decoding_backend", ("lmfe", "outlines"))  # there is one here, and it obeys both
    sampling = Sampling(
        temperature=fields.number("sampling_temperature", 0.0, 100.0),
        top_p=fields.number("sampling_topp", 0.0, 1.0),
        top_k=fields.integer("sampling_topk", 0, _MOST_TOKENS),
        repetition_penalty=fields.number("repetition_penalty", 0.01, 100.0),
        no_repeat_ngram=fields.integer("no_repeat_ngram_size", 0, 1024) or 0,
        min_tokens=fields.integer("min_new_tokens", 0, _MOST_TOKENS) or 0,
        seed=fields.integer("seed", 0, (1 << 63) - 1),
    )
    if sampling.temperature is None and sampling.top_k is None and sampling.top_p is None:
        sampling = replace(sampling, temperature=0.0)  # Takeoff's sampling_topk is 1
    limit = fields.integer("max_new_tokens", 1, _MOST_TOKENS) or 128
    form = _format(fields)
    names = {**_NAMES, "format": "regex_string" if form.kind == "regex" else "json_schema"}
    adapter = fields.text("lora_id", _LONGEST_NAME) or ""
    asks = []
    for text in texts:
        prompt: str | list[int] = text
        if most_prompt_tokens is not None and not template:
            prompt = (await model.tokenize(text))[:most_prompt_tokens]
        ask = Ask(prompt=prompt, max_tokens=limit, sampling=sampling, format=form, adapter=adapter, names=names)
        if template:
            ask.messages, ask.prompt = (Message("user", text),), None
        ask.caller, ask.deadline, ask.notes = http.caller, http.deadline, http.notes
        asks.append(ask)
    if unknown := fields.rest():
        raise InvalidInput(f"Takeoff's API has no {', '.join(sorted(unknown)[:8])}", parameter=sorted(unknown)[0])
    return model, asks, several, metadata


async def _model(fields: Fields, door: Door) -> LanguageModel:
    group = fields.text("consumer_group", _LONGEST_NAME) or PRIMARY
    return await choose(door, group, lambda card: card.info.generates, "generate")


def _format(fields: Fields) -> Format:
    pattern = fields.text("regex_string", 10_000)
    schema = fields.take("json_schema")
    if pattern:  # "ignored if regex_string is set", as Takeoff has it
        return Format("regex", text=pattern)
    if schema is None:
        return Format()
    if isinstance(schema, str):
        try:
            schema = orjson.loads(schema)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"json_schema is no JSON: {error}", parameter="json_schema") from None
    if not isinstance(schema, dict):
        raise fields.mistyped("json_schema", schema, "an object")
    return Format("json_schema", schema=schema)


def _events(model: LanguageModel, ask: Ask) -> AsyncGenerator[Event, None]:
    return cast(AsyncGenerator[Event, None], model.ask(ask))


async def generate(http: HttpRequest, door: Door) -> HttpResponse:
    """`{"text": …}`, a list for a list of prompts; with `return_metadata` what they cost too."""
    model, asks, several, metadata = await _asks(http, door)
    texts = [""] * len(asks)
    told: list[dict[str, object]] = [{} for _ in asks]
    async with aclosing(merged(asks, lambda ask: _events(model, ask))) as events:
        async for number, event in events:
            if isinstance(event, Text):
                texts[number] += event.text
            else:
                told[number] |= _told(event)
    document: dict[str, object] = {"text": texts if several else texts[0]}
    if metadata:
        document["metadata"] = told if several else told[0]
    return HttpResponse(200, orjson.dumps(document))


def _told(event: Event) -> dict[str, object]:
    """What metadata says of an event."""
    if isinstance(event, Finished):
        return {"finish_reason": event.reason}
    if isinstance(event, Usage):
        return {"prompt_tokens": event.prompt_tokens, "generated_tokens": event.completion_tokens}
    return {}


async def generate_stream(http: HttpRequest, door: Door) -> HttpStream:
    """One event for each piece of text; `[i]` before it when the prompts were a list, as Takeoff numbers them."""
    model, asks, several, metadata = await _asks(http, door)
    return HttpStream(_pieces(model, asks, several, metadata), _error_event)


async def _pieces(model: LanguageModel, asks: list[Ask], several: bool, metadata: bool) -> AsyncIterator[bytes]:
    told: list[dict[str, object]] = [{} for _ in asks]
    async with aclosing(merged(asks, lambda ask: _events(model, ask))) as events:
        async for number, event in events:
            if isinstance(event, Text):
                yield _event(orjson.dumps({"index": number, "text": event.text}).decode() if several else event.text)
            else:
                told[number] |= _told(event)
    if metadata:
        yield _event(orjson.dumps({"metadata": told if several else told[0]}).decode())


def _event(text: str) -> bytes:
    """A server-sent event. A space after the colon, which readers take away, saves one that the text begins with."""
    return b"".join(b"data: %b\n" % line.encode() for line in _LINE_END.split(text)) + b"\n"


def _error_event(error: PenstockError) -> bytes:
    return b"event: error\ndata: %b\n\n" % error_json(error)


async def no_images(http: HttpRequest, door: Door) -> HttpResponse:
    """Raises: Unsupported."""
    raise Unsupported("no engine of this server takes images or documents; send text to /generate")


# --- vectors and labels ---


async def embed(http: HttpRequest, door: Door) -> HttpResponse:
    """`{"result": [[…], …]}`, as clients before `/v1/embeddings` read it."""
    fields = _fields(http)
    texts, several = _texts(fields)
    group = fields.text("consumer_group", _LONGEST_NAME) or PRIMARY
    model = await choose(door, group, lambda card: card.info.embeds, "make vectors")
    vectors = await model.embed(texts, caller=http.caller, deadline=http.deadline)
    return HttpResponse(200, orjson.dumps({"result": vectors.values if several else vectors.values[0]}))


async def classify(http: HttpRequest, door: Door) -> HttpResponse:
    """`{"result": [[{"label", "score"}, …], …]}`. Lists inside the list are pairs, which a reranker scores."""
    fields = _fields(http)
    group = fields.text("consumer_group", _LONGEST_NAME) or "classify"
    given = fields.take("text")
    rows = given if isinstance(given, list) else [given]
    if not rows or len(rows) > _MOST_PROMPTS:
        raise fields.refused("text", f"1 to {_MOST_PROMPTS} texts, but got {len(rows)}", "invalid_value")
    pairs = [_pair(fields, row) for row in rows]
    if all(second is not None for _, second in pairs):
        model = await choose(door, group, lambda card: card.info.ranks or card.info.embeds, "score pairs")
        scores = await model.score(
            [(first, second or "") for first, second in pairs], caller=http.caller, deadline=http.deadline
        )
        labels = ["LABEL_0"]
    else:
        model = await choose(door, group, lambda card: card.info.classifies, "classify")
        texts = [first if second is None else first + second for first, second in pairs]
        scores = await model.classify(texts, caller=http.caller, deadline=http.deadline)
        labels = list(model.card.info.labels)
    result = [
        [{"label": label, "score": score} for label, score in zip(labels, row, strict=False)] for row in scores.values
    ]
    return HttpResponse(200, orjson.dumps({"result": result}))


def _pair(fields: Fields, row: object) -> tuple[str, str | None]:
    if isinstance(row, str) and len(row) <= _MOST_CHARACTERS:
        return row, None
    if isinstance(row, list) and len(row) == 2 and all(isinstance(one, str) for one in row):
        return str(row[0]), str(row[1])
    raise fields.mistyped("text", row, f"texts of up to {_MOST_CHARACTERS} characters, or pairs of them")


# --- tokens ---


async def _reader(http: HttpRequest, door: Door) -> LanguageModel:
    return await door.language(http.match["reader"])


async def tokenize(http: HttpRequest, door: Door) -> HttpResponse:
    """`{"tokens": […], "tokens_count": n}`, each token as text."""
    fields = _fields(http)
    text = fields.text("text", _MOST_CHARACTERS)
    if text is None:
        raise fields.missing("text")
    model = await _reader(http, door)
    if fields.flag("use_chat_template"):
        ids = await model.prompt_ids(Ask(messages=(Message("user", text),), names=_NAMES))
    else:
        ids = await model.tokenize(text, special=False)
    return HttpResponse(200, orjson.dumps({"tokens": await model.pieces(ids), "tokens_count": len(ids)}))


async def detokenize(http: HttpRequest, door: Door) -> HttpResponse:
    """`{"text": …}` of token ids, or of tokens as `/tokenize` gives them."""
    fields = _fields(http)
    tokens = fields.array("tokens", _MOST_TOKENS)
    if tokens is None:
        raise fields.missing("tokens")
    fields.flag("skip_special_tokens")
    model = await _reader(http, door)
    if all(isinstance(token, str) for token in tokens):
        return HttpResponse(200, orjson.dumps({"text": "".join(str(token) for token in tokens)}))
    text = await model.detokenize(fields.token_ids("tokens", _MOST_TOKENS))
    return HttpResponse(200, orjson.dumps({"text": text}))


async def chat_template(http: HttpRequest, door: Door) -> HttpResponse:
    """`{"messages": […]}`: the prompt that each conversation of `inputs` becomes."""
    fields = _fields(http)
    conversations = fields.array("inputs", _MOST_PROMPTS, 1)
    if conversations is None:
        raise fields.missing("inputs")
    begins = fields.flag("add_generation_prompt")
    model = await _reader(http, door)
    asks = [
        Ask(messages=_conversation(fields, one), add_generation_prompt=begins, names=_NAMES) for one in conversations
    ]
    return HttpResponse(200, orjson.dumps({"messages": await asyncio.gather(*(model.render(ask) for ask in asks))}))


def _conversation(fields: Fields, given: object) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise fields.mistyped("inputs", given, "lists of messages")
    found = []
    for at, one in enumerate(given):
        if not isinstance(one, dict):
            raise fields.mistyped(f"inputs[{at}]", one, "a message")
        message = Fields(one, f"inputs[{at}]")
        if (role := message.text("role", 64)) is None:
            raise message.missing("role")
        found.append(Message(role, message.text("content", _MOST_CHARACTERS)))
    return tuple(found)


# --- readers ---


async def reader_groups(http: HttpRequest, door: Door) -> HttpResponse:
    """`{"primary": [{"reader_id", …}], …}`."""
    found = {group: [_described(model, group) for model in models] for group, models in (await groups(door)).items()}
    return HttpResponse(200, orjson.dumps(found))


def _described(model: LanguageModel, group: str) -> dict[str, object]:
    info = model.card.info
    return {
        "reader_id": model.card.name,
        "model_name": model.card.name,
        "model_type": "generation" if info.generates else "embedding" if info.embeds else "classification",
        "consumer_group": group,
        "backend": info.engine,
        "quant_type": info.precision,
        "max_sequence_length": info.context_tokens,
        "max_batch_size": info.max_running,
        "pids": [],
    }


async def create_reader(http: HttpRequest, door: Door) -> HttpResponse:
    """201 with the reader. A model that answers already is one; another is loaded where the server allows it."""
    fields = _fields(http)
    name = fields.text("model_name", _LONGEST_NAME)
    if not name:
        raise fields.missing("model_name")
    wanted = fields.text("consumer_group", _LONGEST_NAME)
    if name not in door.models():
        await door.load(name, {"parameters": {"consumer_group": {"string_value": wanted}}} if wanted else None)
    model = await door.language(name)
    group = group_of(door, model)
    if wanted and wanted != group:
        raise AlreadyExists(f"{name!r} is a reader of group {group!r} already, not of {wanted!r}")
    return HttpResponse(201, orjson.dumps(_described(model, group)))


async def delete_reader(http: HttpRequest, door: Door) -> HttpResponse:
    """204; requests under way are answered first."""
    name = http.match["reader"]
    if name not in door.models():
        raise NotFound(f"no reader {name[:80]!r}")
    await door.unload(name)
    return HttpResponse(204, b"", "")


async def reader_config(http: HttpRequest, door: Door) -> HttpResponse:
    """What the reader runs with."""
    model = await _reader(http, door)
    device = "cpu"
    devices = door.describe(model.card.name).config.get("devices")
    if isinstance(devices, (list, tuple)) and devices:
        device = str(devices[0]).partition(":")[0]
    described = _described(model, group_of(door, model))
    del described["reader_id"], described["pids"], described["model_type"]
    return HttpResponse(200, orjson.dumps({**described, "device": device}))


async def status(http: HttpRequest, door: Door) -> HttpResponse:
    """Whether the server is ready, and each reader."""
    live = {
        group: [{"reader_id": model.card.name, "ready": True} for model in models]
        for group, models in (await groups(door)).items()
    }
    return HttpResponse(200, orjson.dumps({"live": door.live(), "ready": door.ready(), "readers": live}))


plug = TakeoffHttp()
