"""Runs Seldon Core 1 graphs: SeldonMessages through units, and rewards back down the way that an answer came.

A unit's own work comes before its children for models, transformers and routers, after them for combiners and output
transformers. `meta.routing` of every answer names the branch of each router, which Seldon's Go orchestrator leaves out:
a feedback needs it. Rewards are learned as they are, fractions too, one trial for each row of the request.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

import msgspec

from penstock.core.errors import InvalidInput, PenstockError, ServableError
from penstock.core.graph_calls import FEEDBACK, OPERATION, STATE, body_outputs, bytes_of
from penstock.core.servable import Signature, Tensors
from penstock.core.tensor import Array
from penstock.graphs import messages
from penstock.graphs.definition import BUILT_IN, SPLITTER, URL, Graph, Node, Step, Unit
from penstock.graphs.messages import Message
from penstock.graphs.seldon import (
    AVERAGE_COMBINER,
    COMBINER,
    MODEL,
    OUTPUT_TRANSFORMER,
    RANDOM_ABTEST,
    ROUTER,
    SIMPLE_ROUTER,
    TRANSFORMER,
)
from penstock.runtime.graphs.bandits import Bandits
from penstock.runtime.graphs.calling import Calls
from penstock.runtime.graphs.journey import Journey
from penstock.runtime.graphs.remote import error_of
from penstock.runtime.graphs.tensors import together

ALL, NONE = -1, -2  # what a router may answer besides a branch
# What SIMPLE_MODEL answers, as Seldon's orchestrator does: a stub for trying graphs out.
_SIMPLE = {"names": ["class0", "class1", "class2"], "tensor": {"shape": [1, 3], "values": [0.1, 0.9, 0.5]}}


class _Walk:
    """One request in the graph: what its units said about it."""

    def __init__(self, journey: Journey, meta: Mapping[str, object]) -> None:
        self.journey = journey
        self.metas: list[Mapping[str, object]] = [meta]
        self.routing: dict[str, int] = {}
        self.path: dict[str, str] = {}


class MessageRunner:
    """Answers with the root unit's message."""

    def __init__(self, graph: Graph, calls: Calls, bandits: Bandits) -> None:
        self._graph = graph
        self._calls = calls
        self._bandits = bandits

    async def answer(self, journey: Journey, inputs: Tensors) -> Mapping[str, Array]:
        """`body` and `status`. Raises: PenstockError that names the unit."""
        body = bytes_of(inputs["body"]) if "body" in inputs else b""
        parameters = dict(journey.parameters)
        operation = parameters.pop(OPERATION, "")
        journey = Journey(journey.deadline, parameters, journey.trace, journey.headers, journey.times, journey.routes)
        if operation == STATE:
            return body_outputs(200, msgspec.json.encode({"routers": self._bandits.state()}))
        try:
            document = msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise InvalidInput(f"the body is no JSON: {error}") from None
        if operation == FEEDBACK:
            await self._feedback(document, journey)
            return body_outputs(200, b'{"meta":{}}')
        if operation:
            raise InvalidInput(f"{OPERATION} is {operation!r}; one of {FEEDBACK}, {STATE}")
        return body_outputs(200, msgspec.json.encode(await self._predict(messages.check(document), journey)))

    # --- predictions ---

    async def _predict(self, request: Message, journey: Journey) -> Message:
        meta = request.get("meta")
        walk = _Walk(journey, meta if isinstance(meta, dict) else {})
        found = await self._node(self._graph.root, request, walk)
        whole = messages.merged(walk.metas)
        whole["puid"] = str(whole.get("puid") or uuid.uuid4().hex)
        whole["routing"] = {**dict(whole.get("routing") or {}), **walk.routing}  # type: ignore[call-overload]  # a dict
        whole["requestPath"] = walk.path
        journey.routes.update(walk.routing)
        return {**{key: value for key, value in found.items() if key not in ("meta", "status")}, "meta": whole}

    async def _node(self, name: str, message: Message, walk: _Walk) -> Message:
        node = self._graph.nodes[name]
        if node.kind == SPLITTER:
            index = walk.routing[name] = self._bandits.draw(node)
            return await self._node(node.steps[index].target.name, message, walk)
        unit = node.unit
        assert unit is not None and unit.call is not None
        walk.path[unit.call.name] = str(unit.call.target)
        if unit.type in (MODEL, TRANSFORMER):
            message = await self._transform(unit, "predict" if unit.type == MODEL else "transform-input", message, walk)
        if not node.steps:
            return message
        below = node.steps
        if unit.type == ROUTER:
            branch = walk.routing[unit.call.name] = await self._route(node, unit, message, walk)
            if branch == NONE:
                return message
            if branch != ALL:
                below = (node.steps[branch],)
        answers = await self._children(below, message, walk)
        if unit.type == COMBINER:
            return await self._combine(unit, answers, walk)
        if unit.type == OUTPUT_TRANSFORMER:
            return await self._transform(unit, "transform-output", answers[0], walk)
        return answers[0]

    async def _children(self, steps: Sequence[Step], message: Message, walk: _Walk) -> list[Message]:
        answers: dict[str, Message] = {}

        async def ask(step: Step) -> dict[str, Array]:
            answers[step.target.name] = await self._node(step.target.name, dict(message), walk)
            return {}

        await together([ask(step) for step in steps])
        return [answers[step.target.name] for step in steps]

    async def _transform(self, unit: Unit, verb: str, message: Message, walk: _Walk) -> Message:
        call = unit.call
        assert call is not None
        if call.target.kind == BUILT_IN:
            return {"data": _SIMPLE} if unit.type == MODEL else message
        if call.target.kind == URL:
            return await self._post(call, verb, message, walk)
        wanted = messages.form(message)

        async def ask(journey: Journey) -> Message:
            signature = await self._signature(journey, call)
            outputs = await self._calls.infer(journey, call.target, messages.inputs(message, signature))
            return messages.answer(outputs, signature, wanted, unit.parameters.get("output", ""))

        return await self._calls.step(walk.journey, call, ask)

    async def _combine(self, unit: Unit, answers: list[Message], walk: _Walk) -> Message:
        call = unit.call
        assert call is not None
        if unit.implementation == AVERAGE_COMBINER:
            try:
                return messages.average(answers)
            except InvalidInput as error:
                raise ServableError(f"step '{call.name}': {error.message}") from None
        if call.target.kind == URL:
            return await self._post(call, "aggregate", {"seldonMessages": answers}, walk)

        async def ask(journey: Journey) -> Message:
            """A model as combiner: its inputs are the children's answers, in order."""
            signature = await self._signature(journey, call)
            if len(signature.inputs) != len(answers):
                raise ServableError(f"it has {len(signature.inputs)} inputs for the answers of {len(answers)} children")
            inputs: dict[str, Array] = {}
            for spec, message in zip(signature.inputs, answers, strict=True):
                only = Signature((spec,), signature.outputs, signature.platform, signature.batchable)
                inputs.update(messages.inputs(message, only))
            outputs = await self._calls.infer(journey, call.target, inputs)
            return messages.answer(outputs, signature, messages.form(answers[0]), unit.parameters.get("output", ""))

        return await self._calls.step(walk.journey, call, ask)

    async def _route(self, node: Node, unit: Unit, message: Message, walk: _Walk) -> int:
        call = unit.call
        assert call is not None
        if node.bandit is not None:
            return self._bandits.choose(node)
        if unit.implementation == SIMPLE_ROUTER:
            return 0
        if unit.implementation == RANDOM_ABTEST:
            return 0 if self._bandits.random.random() < unit.ratio_a else 1
        if call.target.kind == URL:
            said = await self._post(call, "route", message, walk)
            branch = _branch(said, call)
        else:

            async def ask(journey: Journey) -> Message:
                signature = await self._signature(journey, call)
                outputs = await self._calls.infer(journey, call.target, messages.inputs(message, signature))
                return messages.answer(outputs, signature, "ndarray", unit.parameters.get("output", ""))

            branch = _branch(await self._calls.step(walk.journey, call, ask), call)
        if not NONE <= branch < len(node.steps):
            raise ServableError(f"step '{call.name}': it chose branch {branch}; there are 0 to {len(node.steps) - 1}")
        return branch

    async def _signature(self, journey: Journey, call: Step) -> Signature:
        signature = await self._calls.signature(journey, call.target)
        assert signature is not None  # only a url has none
        return signature

    async def _post(self, call: Step, verb: str, message: Message, walk: _Walk) -> Message:
        """What a server that speaks Seldon's internal API answers."""

        async def ask(journey: Journey) -> Message:
            body = msgspec.json.encode(message)
            url = f"{call.target.name}/{verb}"
            reply = await self._calls.remote.post(url, body, journey, {"Content-Type": "application/json"})
            if not reply.success:
                raise error_of(reply)
            try:
                return messages.check(msgspec.json.decode(reply.body), "its answer")
            except (msgspec.MsgspecError, UnicodeError, RecursionError, InvalidInput) as error:
                raise ServableError(f"its answer to /{verb} cannot be read: {error}") from None

        said = await self._calls.step(walk.journey, call, ask)
        meta = said.get("meta")
        if isinstance(meta, dict):
            walk.metas.append(meta)
        return said

    # --- feedback ---

    async def _feedback(self, document: object, journey: Journey) -> None:
        if not isinstance(document, dict):
            raise InvalidInput("feedback is a JSON object with request, response and reward")
        reward = document.get("reward")
        if isinstance(reward, bool) or not isinstance(reward, (int, float)):
            raise InvalidInput(f"reward is {reward!r}; a number belongs there")
        response = messages.check(document.get("response") or {}, "response")
        request = messages.check(document.get("request") or {}, "request")
        meta = response.get("meta")
        routing = meta.get("routing") if isinstance(meta, dict) else None
        walk = _Walk(journey, {})
        way = self._way(self._graph.root, routing if isinstance(routing, dict) else {})
        learned = {name: branch for name, branch in way if branch is not None and name in self._bandits.ways}
        lacking = [name for name, branch in way if branch is None and name in self._bandits.ways]
        if lacking:
            raise InvalidInput(
                f"response.meta.routing does not say which way router {lacking[0]!r} went; send the answer's meta back"
            )
        rows = messages.rows(request) if request else messages.rows(response)
        self._bandits.learn(
            {name: branch for name, branch in learned.items() if branch >= 0}, float(reward), float(rows)
        )
        for name, _ in way:
            unit = self._graph.nodes[name].unit
            if unit is not None and unit.call is not None and unit.call.target.kind == URL:
                await self._post(unit.call, "send-feedback", document, walk)

    def _way(self, name: str, routing: Mapping[object, object]) -> list[tuple[str, int | None]]:
        """The units that an answer passed, each with the branch it took; None where the routing does not say."""
        node = self._graph.nodes[name]
        label = node.unit.call.name if node.unit is not None and node.unit.call is not None else name
        said = routing.get(label)
        branch = said if isinstance(said, int) and not isinstance(said, bool) else None
        if branch is not None and not NONE <= branch < len(node.steps):
            raise InvalidInput(f"response.meta.routing says {branch} for {label!r}; it has {len(node.steps)} branches")
        chooses = node.kind == SPLITTER or (node.unit is not None and node.unit.type == ROUTER)
        way: list[tuple[str, int | None]] = [(name, branch)]
        if chooses and branch == NONE:
            return way
        below = (node.steps[branch],) if chooses and branch is not None and branch >= 0 else node.steps
        for step in below:
            way += self._way(step.target.name, routing)
        return way


def _branch(message: Message, call: Step) -> int:
    """The branch that a router's answer says: its first number. Raises: ServableError."""
    try:
        return int(messages.values_of(message).ravel()[0])
    except (PenstockError, ValueError, TypeError, IndexError, OverflowError):
        raise ServableError(f"step '{call.name}': a router answers with the number of a branch") from None
