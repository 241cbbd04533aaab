"""Calls about who gets which requests, and what was learned: weights, decisions, feedback, comparisons of shadows."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Mapping

import msgspec
from aiohttp import web

from penstock.core.errors import InvalidInput
from penstock.fleet.controller import deciding
from penstock.fleet.controller.deployments_api import change_document, lines_of, view_of
from penstock.fleet.controller.http_calls import answered, document_of, number, only
from penstock.fleet.controller.loop import Controller
from penstock.fleet.evidence import comparison
from penstock.fleet.feedback import calls
from penstock.fleet.routes import Table
from penstock.fleet.spec import Traffic, in_words
from penstock.fleet.store.batch import Batch, LoggedDecision
from penstock.fleet.store.records import Applied

_DEPLOYMENT = "/api/v1/deployments/{name}"
MOST_DECISIONS = 1_000_000
_PAGE = 1000
_FORMS = ("weights", "policy", "options", "sticky", "shadow", "promote", "retire", "pause")


class TrafficCalls:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._writer = f"controller-{os.urandom(6).hex()}"
        self._sequence = itertools.count(1)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.put(f"{_DEPLOYMENT}/traffic", self._traffic),
            web.get(f"{_DEPLOYMENT}/decisions", self._decisions),
            web.get(f"{_DEPLOYMENT}/comparison", self._comparison),
            web.post(f"{_DEPLOYMENT}/feedback", self._feedback),
        ]

    async def _traffic(self, request: web.Request) -> web.Response:
        document = await document_of(request)
        only(document, _FORMS)
        controller, store, now = self._controller, self._controller.store, time.time()
        record = view_of(controller, request.match_info["name"]).record
        name = record.name
        settings = {"policy", "options", "sticky", "shadow"} & document.keys()
        if not document or (len(document) > 1 and document.keys() != settings):
            raise InvalidInput("give one of weights, promote, retire, pause; or policy with options, sticky, shadow")
        if settings:
            wish = _settings(record.state.wish.traffic, document)
            deciding.check(msgspec.structs.replace(record.state.wish, traffic=wish))
            applied = await controller.change(store.set_traffic, name, wish, now)
        elif "weights" in document:
            applied = await self._weigh(name, _weights(document["weights"]), now)
        elif "promote" in document:
            applied = await controller.change(
                store.promote, name, _revision(document, "promote"), "promoted by hand", now
            )
        elif "retire" in document:
            await controller.change(store.retire, name, _revision(document, "retire"), False, "retired by hand", now)
            applied = await self._unchanged(name)
        else:
            if not isinstance(document["pause"], bool):
                raise InvalidInput(f"pause is {document['pause']!r}; true or false")
            await controller.change(store.pause, name, document["pause"], now)
            applied = await self._unchanged(name)
        return answered(change_document(applied))

    async def _weigh(self, name: str, weights: dict[int, float], now: float) -> Applied:
        """Fixed shares: by the policy split, or, where another policy shares requests, by hand until it is resumed."""
        controller, store = self._controller, self._controller.store
        record = await controller.call(store.get, name)
        traffic = record.state.wish.traffic
        if traffic.policy not in ("latest", "split"):
            await controller.change(store.pause, name, True, now, weights)
            return await self._unchanged(name)
        for number_ in weights:
            if record.find(number_) is None:
                raise InvalidInput(f"deployment {name} has no revision {number_}")
        for number_, share in weights.items():
            if share > 0:
                await controller.change(store.want, name, number_, now)
        options = {**(traffic.options if traffic.policy == "split" else {}), "weights": _texts(weights)}
        wish = msgspec.structs.replace(traffic, policy="split", options=options)
        deciding.check(msgspec.structs.replace(record.state.wish, traffic=wish))
        return await controller.change(store.set_traffic, name, wish, now)

    async def _unchanged(self, name: str) -> Applied:
        record = await self._controller.call(self._controller.store.get, name)
        return Applied(name, record.state.generation, record.revision, ())

    async def _decisions(self, request: web.Request) -> web.StreamResponse:
        name = view_of(self._controller, request.match_info["name"]).record.name
        since = number(request, "since", 0.0, 1e12)
        left = int(number(request, "limit", 10_000, MOST_DECISIONS))
        answer = web.StreamResponse(headers={"Cache-Control": "no-store"})
        answer.content_type = "application/x-ndjson"
        await answer.prepare(request)
        log = self._controller.decisions.decisions(name, since, left)
        while page := await self._controller.call(lambda: list(itertools.islice(log, _PAGE))):
            await answer.write(lines_of([_line(one) for one in page]))
        await answer.write_eof()
        return answer

    async def _comparison(self, request: web.Request) -> web.Response:
        record = view_of(self._controller, request.match_info["name"]).record
        experiment = record.state.experiment
        found = (
            await self._controller.call(self._controller.decisions.comparisons, record.name, experiment.id)
            if experiment
            else {}
        )
        shadow = record.state.wish.traffic.shadow
        reports = [{"revision": number, **comparison.report(text)} for number, text in sorted(found.items())]
        return answered({"shadow": shadow.revision if shadow else None, "comparisons": reports})

    async def _feedback(self, request: web.Request) -> web.Response:
        body, now = await request.read(), time.time()
        table = Table(0, self._controller.tables.endpoints, (), self._controller.store.secret)
        call = calls.read(request.match_info["name"], body, table, now)
        batch = Batch(self._writer, next(self._sequence), now, rewards=call.rewards)
        outcomes = await self._controller.call(self._controller.decisions.record, batch) if call.rewards else []
        status, document = calls.answer(call, outcomes)
        return web.Response(body=document, status=status, content_type="application/json")


def _settings(before: Traffic, document: Mapping[str, object]) -> Traffic:
    """Traffic with other settings; another policy begins with its own options. Raises: InvalidInput."""
    values = msgspec.to_builtins(before)
    if "policy" in document and "options" not in document and document["policy"] != before.policy:
        values["options"] = {}
    try:
        return msgspec.convert({**values, **document}, Traffic)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"traffic: {in_words(error)}") from None


def _weights(given: object) -> dict[int, float]:
    if not isinstance(given, dict) or not given:
        raise InvalidInput('weights are {"1": 90, "2": 10}: shares by revision')
    weights: dict[int, float] = {}
    for key, share in given.items():
        numeric = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not key.isascii() or not key.isdecimal() or len(key) > 9 or not numeric or not 0 <= share < math.inf:
            raise InvalidInput(f"weight {str(key)[:40]!r}: {share!r}; revisions by number, shares at least 0")
        weights[int(key)] = float(share)
    if not sum(weights.values()) > 0:
        raise InvalidInput("weights are all 0; at least one is above")
    return weights


def _texts(weights: Mapping[int, float]) -> dict[str, float]:
    return {str(revision): share for revision, share in sorted(weights.items())}


def _revision(document: Mapping[str, object], key: str) -> int:
    value = document[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(f"{key} is {value!r}; the number of a revision")
    return value


def _line(logged: LoggedDecision) -> dict[str, object]:
    made = logged.decision
    return {
        "id": made.id, "deployment": made.deployment, "experiment": made.experiment, "revision": made.revision,
        "propensity": made.propensity, "at": made.at, "context": list(made.context), "reward": logged.reward,
        "rewarded_at": logged.rewarded_at,
    }  # fmt: skip
