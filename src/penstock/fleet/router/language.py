"""Requests to language models: whose they are by the `model` in their bodies, and the list of models that there are.

A name is a deployment's, `deployment:version` (which version that is, the replica knows), or one that the replicas of a
deployment say they have: a LoRA adapter. Those are asked for when a name is unknown and when the models are listed, at
most once in `_ASKED_EVERY_S`, one replica of each deployment; a deployment that sleeps keeps what it said last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import orjson

from penstock.core.errors import Internal, InvalidInput, NotFound, NotReady, PenstockError, Unsupported
from penstock.core.nearest import nearest
from penstock.fleet.router.answer_head import AnswerReader
from penstock.fleet.router.calls import Call, ErrorCall
from penstock.fleet.router.exchange import Exchange
from penstock.fleet.router.lanes import Service, Upstream
from penstock.fleet.router.language_paths import kept_answers
from penstock.fleet.router.own import wall_clock
from penstock.fleet.router.plan import KEPT_ELSEWHERE, Plan
from penstock.fleet.router.prompts import MOST_BYTES, Prompt, read_document, read_prompt
from penstock.fleet.router.talk import Talk

if TYPE_CHECKING:
    from penstock.fleet.router.client import ClientConnection
    from penstock.fleet.router.front import HttpFront
    from penstock.fleet.router.request_head import Head
    from penstock.fleet.routes import Tenant

log = logging.getLogger("penstock.router")

_ASKED_EVERY_S: Final = 2.0
_ASK_TIMEOUT_S: Final = 2.0
_MOST_LIST_BYTES: Final = 1 << 20
_MOST_MODELS: Final = 1000  # of one deployment
_BALANCED: Final = ("auto", "prefix")

Model = dict[str, object]


class Language:
    """Of one HTTP front; on its loop."""

    def __init__(self, front: HttpFront) -> None:
        self._front = front
        self._listed: dict[str, list[Model]] = {}  # by deployment
        self._adapters: dict[str, str] = {}  # a name that is no deployment's -> the deployment that has it
        self._asked_at = -_ASKED_EVERY_S
        self._asking: asyncio.Task[None] | None = None

    # --- requests -------------------------------------------------------------------------------------------------

    def call(
        self, client: ClientConnection, head: Head, made: Plan, body: bytes, streams: bool, began: float
    ) -> Call:  # fmt: skip
        """What answers a request; it is begun by the caller."""
        front = self._front
        document: Mapping[str, object] = {}
        try:
            tenant = front.authenticate(head)
            service = made.service
            if not streams and (service is None or len(body) <= MOST_BYTES):
                document = self._document(body, service)
            if document.get("background") is True and kept_answers(head.path) and not made.routed:
                raise Unsupported(f"`background` is not for here: {KEPT_ELSEWHERE}")
            if service is None:
                name = self._name(document, tenant)
                service = self._service(name)
                if service is None:
                    return _Late(self, client, head, made, body, began, document, name, tenant)
            return self.exchange(client, head, made, service, body, streams, began, document, tenant)
        except PenstockError as error:
            return ErrorCall(front, client, head, error)

    def exchange(
        self, client: ClientConnection, head: Head, made: Plan, service: Service, body: bytes, streams: bool,
        began: float, document: Mapping[str, object], tenant: Tenant | None,
    ) -> Exchange:  # fmt: skip
        """The exchange of a request whose deployment is known. Raises: PenstockError: the tenant may not."""
        front = self._front
        balanced = service.endpoint.requests.balance in _BALANCED
        prompt = read_prompt(head.path, document, len(body)) if document else Prompt((), b"", len(body) / 4, 256.0)
        model = document.get("model")
        if isinstance(model, str) and self._adapters.get(model) == service.endpoint.name:
            prompt.adapter = model
        name, weight, settle = "", 1.0, None
        if tenant is not None:
            tenants = front.hooks.tenants
            settle = tenants.reserve(
                tenant, service.endpoint.name, prompt.tokens + prompt.output, wall_clock(), wall_clock
            )  # fmt: skip
            name, weight = tenant.name, tenant.weight
        talk = Talk(prompt, balanced, front.clock, settle)
        plan = made.for_service(head, service)
        return Exchange(front, client, head, plan, body, streams, began, name, weight, talk)

    def _document(self, body: bytes, service: Service | None) -> Mapping[str, object]:
        try:
            return read_document(body)
        except InvalidInput:
            if service is None:
                raise
            return {}  # its replica says what is wrong with it

    def _name(self, document: Mapping[str, object], tenant: Tenant | None) -> str:
        """What the body calls its model. Takeoff's bodies may name a consumer group; without either, a router with one
        deployment has no choice."""
        for field in ("model", "consumer_group"):
            name = document.get(field)
            if isinstance(name, str) and name:
                return name
            if name is not None:
                raise InvalidInput(f"{field} is the model's name, as text", parameter=field)
        names = self.callable(tenant)
        if len(names) == 1:
            return names[0]
        raise InvalidInput("the body names no model: write its deployment's name as `model`", parameter="model")

    def callable(self, tenant: Tenant | None) -> list[str]:
        """The deployments that the tenant may call."""
        return [
            name for name in sorted(self._front.balancer.services)
            if tenant is None or not tenant.deployments or name in tenant.deployments
        ]  # fmt: skip

    def _service(self, name: str) -> Service | None:
        services = self._front.balancer.services
        found = services.get(name)
        if found is None and ":" in name:
            found = services.get(name.partition(":")[0])
        if found is None:
            found = services.get(self._adapters.get(name, ""))
        return found

    async def find(self, name: str, tenant: Tenant | None) -> Service:
        """The deployment of a name that is unknown so far. Raises: NotFound."""
        await self._ask()
        service = self._service(name)
        if service is None:
            known = self.callable(tenant)
            raise NotFound(f"there is no model {name[:256]!r}{nearest(name, known)}")
        return service

    # --- the list -------------------------------------------------------------------------------------------------

    async def models(self, tenant: Tenant | None) -> list[Model]:
        """The language models of all deployments that the tenant may call, as their replicas describe them."""
        await self._ask()
        return [model for name in self.callable(tenant) for model in self._listed.get(name, ())]

    async def _ask(self) -> None:
        """Asks again what models there are, unless that was just done."""
        if self._asking is None and self._front.clock() - self._asked_at >= _ASKED_EVERY_S:
            self._asking = self._front.loop.create_task(self._ask_all())
        if self._asking is not None:
            await asyncio.shield(self._asking)

    async def _ask_all(self) -> None:
        try:
            services = dict(self._front.balancer.services)
            asked = {
                name: upstream for name, service in services.items()
                if (upstream := _anyone(service)) is not None
            }  # fmt: skip
            answers = await asyncio.gather(*(_models_of(upstream) for upstream in asked.values()))
            for name, found in zip(asked, answers, strict=True):
                if found is not None:
                    self._listed[name] = found
            self._listed = {name: found for name, found in self._listed.items() if name in services}
            self._adapters = {
                str(model["id"]): name for name, found in self._listed.items() for model in found
                if model["id"] not in services
            }  # fmt: skip
            self._asked_at = self._front.clock()
        except Exception:
            log.exception("asking replicas for their models failed")
        finally:
            self._asking = None


class _Late:
    """A request whose model is not known yet: replicas are asked first."""

    def __init__(
        self, language: Language, client: ClientConnection, head: Head, made: Plan, body: bytes, began: float,
        document: Mapping[str, object], name: str, tenant: Tenant | None,
    ) -> None:  # fmt: skip
        self._language = language
        self._given = client, head, made, body, began, document, name, tenant
        self._task: asyncio.Task[None] | None = None
        self._exchange: Exchange | None = None

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._find())

    async def _find(self) -> None:
        client, head, made, body, began, document, name, tenant = self._given
        try:
            service = await self._language.find(name, tenant)
            exchange = self._language.exchange(client, head, made, service, body, False, began, document, tenant)
            self._exchange = exchange
            exchange.begin()
        except PenstockError as error:
            self.fail(error)
        except asyncio.CancelledError:
            if self._task is not None:
                self.fail(NotReady("the router is stopping", retry_after_s=1.0))
        except Exception:
            log.exception("finding a model failed")
            self.fail(Internal("internal error; the router's log has the traceback"))

    def fail(self, error: PenstockError) -> None:
        if self._exchange is not None:
            self._exchange.fail(error)
            return
        client, head = self._given[:2]
        client.front.count_error("", error)
        client.fail(error, head)

    def abandon(self) -> None:
        if self._exchange is not None:
            self._exchange.abandon()
            return
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def client_full(self, full: bool) -> None:
        if self._exchange is not None:
            self._exchange.client_full(full)

    def more(self, data: bytes) -> None: ...

    def no_more(self) -> None: ...


def _anyone(service: Service) -> Upstream | None:
    """A replica that can be asked, of the arm that most requests go to."""
    for lane in sorted(service.lanes, key=lambda lane: -lane.weight):
        for upstream in lane.upstreams:
            if not upstream.ejected:
                return upstream
    return None


async def _models_of(upstream: Upstream) -> list[Model] | None:
    """The language models that a replica lists; `[]` of one that has none, None when it did not say."""
    host, _, port = upstream.http.rpartition(":")
    writer = None
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), limit=_MOST_LIST_BYTES)
            writer.write(b"GET /v1/models HTTP/1.0\r\nHost: replica\r\nConnection: close\r\n\r\n")
            head = AnswerReader().read(await reader.readuntil(b"\r\n\r\n"))
            if head.status in (404, 405, 501):
                return []
            if head.status != 200 or head.chunked or (head.length or 0) > _MOST_LIST_BYTES:
                return None
            body = b""
            while len(body) < _MOST_LIST_BYTES and (head.length is None or len(body) < head.length):
                more = await reader.read(1 << 16)
                if not more:
                    break
                body += more
    except (OSError, TimeoutError, ValueError, PenstockError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    finally:
        if writer is not None:
            writer.close()
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    data = found.get("data") if isinstance(found, dict) else None
    if not isinstance(data, list):
        return []  # TensorFlow Serving's or KServe's list: no language models
    return [one for one in data[:_MOST_MODELS] if isinstance(one, dict) and isinstance(one.get("id"), str)]
