"""Streams of a language model over HTTP, one for each surface: what is asked, what an error's event looks like, and what
an end looks like that says "whole"."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

SAY = "say:" + "x" * 2_000
MESSAGES = [{"role": "user", "content": SAY}]

# By surface: the path and the body of an answer of 2,000 tokens.
SURFACES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"model": "echo", "messages": MESSAGES, "stream": True}),
    "completions": ("/v1/completions", {"model": "echo", "prompt": SAY, "stream": True, "max_tokens": 3000}),
    "responses": ("/v1/responses", {"model": "echo", "input": SAY, "stream": True}),
    "messages": ("/v1/messages", {"model": "echo", "messages": MESSAGES, "stream": True, "max_tokens": 3000}),
    "takeoff": ("/generate_stream", {"text": SAY, "consumer_group": "primary", "max_new_tokens": 3000}),
    "generate": ("/v2/models/echo/generate_stream", {"text_input": SAY, "max_tokens": 3000}),
}


@dataclass
class Read:
    """What came of one stream."""

    surface: str
    status: int = 0
    broke_off: str = ""
    text: str = ""
    events: list[tuple[str, str]] = field(default_factory=list)  # name, data

    @property
    def says_whole(self) -> bool:
        ends = {"[DONE]", "message_stop", "response.completed"}
        return any(name in ends or data in ends for name, data in self.events)

    @property
    def error(self) -> dict[str, Any]:
        """The error of the last event, {} when it is none."""
        if not self.events:
            return {}
        name, data = self.events[-1]
        try:
            last = json.loads(data)
        except json.JSONDecodeError:
            return {}
        if self.surface == "responses":
            return last if last.get("type") == "error" == name else {}
        if self.surface in ("messages", "takeoff"):
            return _object(last.get("error")) if name == "error" else {}
        if self.surface == "generate":
            return last if set(last) == {"error", "type"} else {}
        return _object(last.get("error"))


def _object(error: Any) -> dict[str, Any]:
    return error if isinstance(error, dict) else {"message": error} if error else {}


async def read(client: httpx.AsyncClient, surface: str, found: Read, **more: object) -> Read:
    """Reads one stream to its end, whatever that is."""
    path, body = SURFACES[surface]
    headers = more.pop("headers", {})
    name = ""
    try:
        async with client.stream("POST", path, json=body | more, headers=headers) as answer:
            found.status = answer.status_code
            async for line in answer.aiter_lines():
                found.text += line + "\n"
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data:"):
                    found.events.append((name, line[5:].removeprefix(" ")))
                    name = ""
    except httpx.TransportError as error:
        found.broke_off = repr(error)
    return found


async def becomes(claim: Callable[[], object], within_s: float, what: str) -> None:
    """Returns as soon as the claim holds; fails with `what` when it does not in time."""
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.01)
