"""Runs graphs of HTTP bodies as KServe's InferenceGraph router does: bodies and status codes go through as they are.

Source: cmd/router/main.go of https://github.com/kserve/kserve, whose behaviour differs from its documents: an unmatched
Switch is 404, and a Sequence that ends at an unmet condition answers 200 with the body before it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from penstock.core.errors import DeadlineExceeded, PenstockError
from penstock.core.graph_calls import TENSORS, answered, body_inputs, body_outputs, bytes_of, level_of
from penstock.core.messages import Request
from penstock.core.servable import Tensors
from penstock.core.tensor import Array
from penstock.graphs import gjson
from penstock.graphs.definition import ENSEMBLE, NODE, SEQUENCE, SPLITTER, URL, Graph, Node, Step
from penstock.protocols import HttpRequest, v1_http
from penstock.runtime.graphs.bandits import Bandits
from penstock.runtime.graphs.calling import Calls
from penstock.runtime.graphs.journey import Journey
from penstock.runtime.graphs.tensors import together

UNMATCHED = "None of the routes matched with the switch condition"
_JSON = "application/json"
_NO_JSON = object()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a step or a node answered."""

    status: int
    body: bytes
    content_type: str = _JSON

    @property
    def success(self) -> bool:
        """Whether the status is one of the 2xx."""
        return 200 <= self.status < 300


class _Stop(Exception):
    """The graph ends here with 500, whatever dependencies say: as KServe's router, when it cannot go on."""


class BodyRunner:
    """Answers with what the root node answers."""

    def __init__(self, graph: Graph, calls: Calls, bandits: Bandits) -> None:
        self._graph = graph
        self._calls = calls
        self._bandits = bandits
        self._paths = {
            step.path: gjson.read(step.path) for node in graph.nodes.values() for step in node.steps if step.path
        }

    async def answer(self, journey: Journey, inputs: Tensors) -> Mapping[str, Array]:
        """`body`, `status` and `content_type`. Raises: DeadlineExceeded when the request's own time is over."""
        request = bytes_of(inputs["body"]) if "body" in inputs else b""
        try:
            found = await self._node(self._graph.nodes[self._graph.root], request, journey)
        except _Stop as error:
            found = _failed(500, str(error))
        return body_outputs(found.status, found.body, found.content_type)

    async def _node(self, node: Node, request: bytes, journey: Journey) -> Answer:
        if node.kind == SEQUENCE:
            return await self._sequence(node, request, journey)
        if node.kind == ENSEMBLE:
            return await self._ensemble(node, request, journey)
        if node.kind == SPLITTER:
            return await self._step(node.steps[self._bandits.draw(node)], request, journey)
        document = _parsed(request)
        for step in node.steps:
            if document is not _NO_JSON and self._paths[step.path].exists(document):
                return await self._step(step, request, journey)
        return _failed(404, UNMATCHED)

    async def _sequence(self, node: Node, request: bytes, journey: Journey) -> Answer:
        last = Answer(200, b"")
        for index, step in enumerate(node.steps):
            body = last.body if step.response and index else request
            if step.path:
                document = _parsed(last.body)
                if document is _NO_JSON:
                    raise _Stop(f"step '{step.name}': the body that its condition looks at is no JSON")
                if not self._paths[step.path].exists(document):
                    return Answer(200, last.body, last.content_type)
            if step.map_predictions and step.response and index:
                body = _instances_of(body)
            last = await self._step(step, body, journey)
            if step.hard and not last.success:
                return last
        return last

    async def _ensemble(self, node: Node, request: bytes, journey: Journey) -> Answer:
        answers: dict[str, Answer] = {}

        async def ask(step: Step) -> dict[str, Array]:
            answers[step.name] = await self._step(step, request, journey)
            return {}

        await together([ask(step) for step in node.steps])
        parts: dict[str, object] = {}
        for step in node.steps:
            answer = answers[step.name]
            document = _parsed(answer.body)
            if step.hard and not answer.success:
                return answer
            if not isinstance(document, dict):
                raise _Stop(f"step '{step.name}': an ensemble joins JSON objects, and its body is none")
            parts[step.name] = document
        return Answer(200, msgspec.json.encode(parts))

    async def _step(self, step: Step, body: bytes, journey: Journey) -> Answer:
        """What the step answered; what it could not answer for our own reasons stops the graph.

        Raises:
            DeadlineExceeded: the request's time is over.
        """
        if step.target.kind == NODE:
            return await self._node(self._graph.nodes[step.target.name], body, journey)
        began = time.monotonic()
        try:
            if self._calls.local(step.target):
                return await self._ask_here(step.target.name, body, journey)
            url = self._calls.url(step.target)
            keyed = step.target.kind != URL
            if keyed:
                url = f"{url.replace('/v2/models/', '/v1/models/', 1)}:predict"
            reply = await self._calls.remote.post(url, body, journey, {"Content-Type": _JSON}, keyed=keyed)
            return Answer(reply.status, reply.body, reply.content_type)
        except PenstockError as error:
            if isinstance(error, DeadlineExceeded) or time.monotonic() >= journey.deadline:
                raise DeadlineExceeded(f"step '{step.name}': {error.message}") from None
            raise _Stop(f"step '{step.name}': {error.message}") from None
        finally:
            journey.times.append((step.name, time.monotonic() - began))

    async def _ask_here(self, model: str, body: bytes, journey: Journey) -> Answer:
        """A model of this server, asked in the V1 protocol as if over HTTP; a graph of bodies with the body itself."""
        models = self._calls.models
        level = level_of(models.signature(model))
        if level not in ("", TENSORS):
            request = Request(model, dict(body_inputs(body, journey.headers)), deadline=journey.deadline)
            request.trace = journey.trace
            return Answer(*answered(await self._calls.send(request)))
        http = HttpRequest("POST", f"/v1/models/{model}:predict", {}, body, match={"model": model})
        try:
            exchange = v1_http.decode(http, models)
            exchange.request.deadline = journey.deadline
            exchange.request.trace = journey.trace
            response = exchange.encode(await self._calls.send(exchange.request))
        except DeadlineExceeded:
            raise
        except PenstockError as error:
            response = v1_http.plug.encode_error(error, http)
        content = response.body if isinstance(response.body, bytes) else b"".join(response.body)
        return Answer(response.status, content, response.content_type)


def _failed(status: int, cause: str) -> Answer:
    return Answer(status, msgspec.json.encode({"error": "Failed to process request", "cause": cause}))


def _parsed(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _NO_JSON


def _instances_of(body: bytes) -> bytes:
    """`{"predictions": …}` as the `{"instances": …}` that the next model takes; anything else as it is."""
    document = _parsed(body)
    if isinstance(document, dict) and "predictions" in document:
        return msgspec.json.encode({"instances": document["predictions"]})
    return body
