"""The events of a response that has ended, made of the object: each item's text in one piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from penstock.protocols.openai_http.responses_wire import event_of

_LAST = {"completed": "response.completed", "failed": "response.failed"}
_NONE: Mapping[str, object] = {"output": [], "usage": None, "completed_at": None, "incomplete_details": None,
                               "error": None, "status": "in_progress"}  # fmt: skip


def replayed(document: Mapping[str, Any]) -> Iterator[bytes]:
    """The events, numbered from 0."""
    for number, (kind, members) in enumerate(_events(document)):
        yield event_of(kind, number, members)


def _events(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, object]]]:
    begun = {**document, **_NONE}
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for at, item in enumerate(document["output"]):
        call = item["type"] == "function_call"
        empty = {**item, "status": "in_progress", **({"arguments": ""} if call else {"content": []})}
        yield "response.output_item.added", {"output_index": at, "item": empty}
        place = {"item_id": item["id"], "output_index": at}
        if call:
            arguments = item["arguments"]
            if arguments:
                yield "response.function_call_arguments.delta", {**place, "delta": arguments}
            yield "response.function_call_arguments.done", {**place, "name": item["name"], "arguments": arguments}
        else:
            for index, part in enumerate(item["content"]):
                yield from _part({**place, "content_index": index}, part)
        yield "response.output_item.done", {"output_index": at, "item": item}
    yield _LAST.get(str(document["status"]), "response.incomplete"), {"response": document}


def _part(place: dict[str, object], part: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, object]]]:
    text = part["text"]
    thought = part["type"] == "reasoning_text"
    logprobs = {} if thought else {"logprobs": part["logprobs"]}
    empty = {**part, "text": "", **({} if thought else {"logprobs": []})}
    kind = "response.reasoning_text" if thought else "response.output_text"
    yield "response.content_part.added", {**place, "part": empty}
    if text:
        yield f"{kind}.delta", {**place, "delta": text, **logprobs}
    yield f"{kind}.done", {**place, "text": text, **logprobs}
    yield "response.content_part.done", {**place, "part": part}
