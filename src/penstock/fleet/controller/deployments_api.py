"""Calls about deployments: list, wish, delete, roll back, and what is known of one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
import orjson
from aiohttp import web

from penstock.core.errors import InvalidInput, NotFound
from penstock.core.nearest import nearest
from penstock.fleet import spec
from penstock.fleet.controller import deciding
from penstock.fleet.controller.fingerprint import fingerprint
from penstock.fleet.controller.graph_file import check_graph
from penstock.fleet.controller.http_calls import answered, document_of, flag, number, only
from penstock.fleet.controller.loop import Controller
from penstock.fleet.controller.status import event_document, status
from penstock.fleet.controller.view import View
from penstock.fleet.spec import Deployment
from penstock.fleet.state import Replica
from penstock.fleet.store.records import Applied, Record, difference

LONGEST_POLL_S = 60.0
MOST_EVENTS = 1000
MOST_LINES = 100_000
_DEPLOYMENT = "/api/v1/deployments/{name}"


class Deployments:
    def __init__(self, controller: Controller, check_files: bool) -> None:
        self._controller = controller
        self._check_files = check_files

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/deployments", self._list),
            web.get(_DEPLOYMENT, self._one),
            web.put(_DEPLOYMENT, self._put),
            web.delete(_DEPLOYMENT, self._delete),
            web.post(f"{_DEPLOYMENT}/rollback", self._rollback),
            web.get(f"{_DEPLOYMENT}/revisions", self._revisions),
            web.get(f"{_DEPLOYMENT}/events", self._events),
            web.get(f"{_DEPLOYMENT}/logs", self._logs),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        controller = self._controller
        after = request.query.get("after")
        if after is not None:
            seconds = number(request, "timeout_s", 30.0, LONGEST_POLL_S)
            await controller.after(int(number(request, "after", 0, 2**62)), seconds)
        version, views = controller.version, controller.views()
        events = await controller.call(controller.store.last_events)
        documents = [self._status(view, events.get(name, ())) for name, view in sorted(views.items())]
        return answered({"deployments": documents, "version": version})

    async def _one(self, request: web.Request) -> web.Response:
        view = self._view(request)
        events = await self._controller.call(self._controller.store.events, view.record.name, 0, 10)
        return answered(self._status(view, events))

    async def _put(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        document = await document_of(request)
        given = document.pop("name", name)
        if given != name:
            raise InvalidInput(f"the document's name is {given!r}, the path's {name!r}")
        document.pop("content", None)  # ours to fill in
        wish = spec.read(name, document)
        deciding.check(wish)
        content = await asyncio.to_thread(fingerprint, wish.run, self._check_files)
        if self._check_files:
            await asyncio.to_thread(check_graph, wish.run)
        wish = msgspec.structs.replace(wish, run=msgspec.structs.replace(wish.run, content=content))
        if flag(request, "dry_run"):
            return answered(self._dry(name, wish))
        applied = await self._controller.change(self._controller.store.apply, wish, time.time())
        return answered(change_document(applied))

    def _dry(self, name: str, wish: Deployment) -> dict[str, object]:
        record = self._controller.records.get(name)
        changed = difference(record.state.wish if record else None, wish)
        return {
            "name": name,
            "generation": (record.state.generation if record else 0) + bool(changed),
            "revision": _revision_for(record, wish),
            "changed": changed,
        }

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await self._controller.change(self._controller.store.delete, name, time.time())
        return answered({"name": name}, 202)

    async def _rollback(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        document = await document_of(request, empty=True)
        only(document, ("to",))
        to = document.get("to")
        if to is not None and (not isinstance(to, int) or isinstance(to, bool) or to < 1):
            raise InvalidInput(f"to is {to!r}; the number of a revision")
        applied = await self._controller.change(self._controller.store.rollback, name, to, time.time())
        return answered(change_document(applied))

    async def _revisions(self, request: web.Request) -> web.Response:
        view = self._view(request)
        return answered(
            {
                "revisions": [
                    {
                        "number": one.number, "phase": one.phase.value, "created_at": one.created_at,
                        "reason": one.reason, "phase_at": one.phase_at, "model": one.run.model or one.run.graph,
                        "run": msgspec.to_builtins(one.run), "content": dict(one.content),
                    }
                    for one in view.record.state.revisions
                ]
            }
        )  # fmt: skip

    async def _events(self, request: web.Request) -> web.Response:
        name = self._view(request).record.name
        after = int(number(request, "after", 0, 2**62))
        limit = int(number(request, "limit", 100, MOST_EVENTS))
        events = await self._controller.call(self._controller.store.events, name, after, limit)
        return answered({"events": [event_document(one) for one in events]})

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        view = self._view(request)
        lines, follow = int(number(request, "lines", 100, MOST_LINES)), flag(request, "follow")
        id, revision = request.query.get("replica"), request.query.get("revision")
        gone = await self._controller.driver.gone(view.record.name)
        replica = _chosen(view, gone, id, revision)
        texts = self._controller.driver.logs(replica.id, lines, follow)
        first = await anext(aiter(texts), None)  # an error is an answer of its own, before anything was sent
        answer = web.StreamResponse(headers={"Penstock-Replica": replica.id, "Cache-Control": "no-store"})
        answer.content_type, answer.charset = "text/plain", "utf-8"
        await answer.prepare(request)
        if first is not None:
            await _send(answer, first, texts)
        await answer.write_eof()
        return answer

    def _view(self, request: web.Request) -> View:
        return view_of(self._controller, request.match_info["name"])

    def _status(self, view: View, events: tuple[object, ...] | object) -> dict[str, object]:
        controller, name = self._controller, view.record.name
        statistics, load = controller.statistics.get(name, {}), controller.demand.last(name)
        return status(view, statistics, load, events, time.time())  # type: ignore[arg-type]  # a tuple of events


def view_of(controller: Controller, name: str) -> View:
    """Raises: NotFound."""
    view = controller.views().get(name)
    if view is None:
        raise NotFound(f"there is no deployment {name[:80]!r}{nearest(name, controller.records)}")
    return view


def change_document(applied: Applied) -> dict[str, object]:
    return {
        "name": applied.name, "generation": applied.generation, "revision": applied.revision,
        "changed": applied.changed,
    }  # fmt: skip


def _revision_for(record: Record | None, wish: Deployment) -> int:
    """The number that the wish's run has or would get."""
    if record is None:
        return 1
    same = [one.number for one in record.state.revisions if one.run == wish.run and one.phase != "failed"]
    if wish.run == record.state.wish.run and record.revision in same:
        return record.revision
    return same[-1] if same else record.state.revisions[-1].number + 1


def _chosen(view: View, gone: Sequence[Replica], id: str | None, revision: str | None) -> Replica:
    """The replica that is meant: by id or revision, else one that is ready and serves; the newest of them. Where none
    is left, the one that went last."""
    experiment = view.record.state.experiment
    arms = experiment.arms if experiment else ()
    replicas = [
        *gone,
        *sorted(
            view.replicas,
            key=lambda one: (one.state == "ready", one.revision in arms, one.revision, one.started_at),
        ),
    ]
    if id is not None:
        replicas = [one for one in replicas if one.id == id]
    if revision is not None:
        replicas = [one for one in replicas if str(one.revision) == revision]
    if not replicas:
        known = ", ".join(one.id for one in (*gone, *view.replicas)) or "none"
        raise NotFound(f"there is no such replica of {view.record.name}; there are {known}")
    return replicas[-1]


async def _send(answer: web.StreamResponse, first: str, texts: AsyncIterator[str]) -> None:
    await answer.write(_line(first))
    async for text in texts:
        await answer.write(_line(text))


def _line(text: str) -> bytes:
    return (text if text.endswith("\n") else f"{text}\n").encode(errors="replace")


def lines_of(documents: list[Mapping[str, object]]) -> bytes:
    """JSON lines."""
    return b"".join(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in documents)
