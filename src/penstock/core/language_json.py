"""Asks and events as JSON: for engines that speak of whole conversations (`EngineInfo.chats`), in other processes."""

from __future__ import annotations

import dataclasses
from typing import Final

import msgspec

from penstock.core.language import Ask, Began, Event, Finished, Reasoning, Text, ToolCallPart, Usage
from penstock.core.messages import NO_DEADLINE

_KINDS: Final[dict[str, type[Event]]] = {
    kind.__name__: kind for kind in (Began, Text, Reasoning, ToolCallPart, Finished, Usage)
}
_ask: Final = msgspec.json.Decoder(Ask)
_tagged: Final = msgspec.json.Decoder(tuple[str, msgspec.Raw])
_text: Final = msgspec.json.Encoder()


def encode_ask(ask: Ask) -> bytes:
    """What `Generation.ask` holds. The trace stays behind: it goes with the request. So does `take`."""
    deadline = 0.0 if ask.deadline == NO_DEADLINE else ask.deadline  # JSON knows no infinity
    return _text.encode(dataclasses.replace(ask, deadline=deadline, trace=None, take=None))


def decode_ask(data: bytes) -> Ask:
    """The ask that `encode_ask` was given."""
    ask = _ask.decode(data)
    ask.deadline = ask.deadline or NO_DEADLINE
    return ask


def encode_event(event: Event) -> bytes:
    """What `Delta.event` holds."""
    return _text.encode((type(event).__name__, event))


def decode_event(data: bytes) -> Event:
    """The event that `encode_event` was given."""
    name, rest = _tagged.decode(data)
    return msgspec.json.decode(rest, type=_KINDS[name])
