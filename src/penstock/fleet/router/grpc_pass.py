"""One gRPC call on its way to a replica and back. Messages are bytes, and are never parsed. Imports grpc.

Theory of operation. A call is routed by its metadata before any message is read; where that names nobody, by the
model's name in its first message. It takes a place at a replica from the balancer as HTTP requests do, so both share
limits, queues and draws. Deadlines become the timeout of the replica's call; when the caller leaves, grpc cancels our
handler's task, and with it the replica's call.

A call whose connection could not be made has reached nobody and is sent elsewhere, as long as its deadline lets it. One
that a replica refused (`penstock-error` in the trailers says NotReady or Overloaded) is sent to another, within the
retry budget. One whose connection broke may have had an effect; it is sent again only where the deployment says that
this does no harm (`requests.idempotent`), within the budget too. Streams are never sent again once they were connected:
what was read from the caller is gone.

What grpcio does not pass on: the compression of messages (they arrive decompressed, and travel so on loopback), and the
caller's `:authority`, which grpc.aio does not show; rules with a host compare with `x-forwarded-host` or `host` in the
metadata.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio
from grpc._cython import cygrpc

from penstock.core.errors import DeadlineExceeded, InvalidInput, NotFound, PenstockError, Unsupported
from penstock.core.grpc_status import http_status_of_code
from penstock.fleet.router.balancer import Balancer
from penstock.fleet.router.grpc_channels import Channels, Link
from penstock.fleet.router.grpc_mirror import Copies, Copy
from penstock.fleet.router.grpc_outcome import Context, Fault, Pairs, abort, fault_of, pairs, relay, unexpected
from penstock.fleet.router.grpc_peek import ABOUT, V2, model_name
from penstock.fleet.router.hooks import Answer, Decision, Hooks
from penstock.fleet.router.lanes import Lane, Service, Upstream
from penstock.fleet.router.sticky import user_key
from penstock.fleet.routes import Tenant
from penstock.fleet.spec import TIMEOUT_S

OnError = Callable[[str, PenstockError], None]
"""Told of each answer of the router's own that is an error, with the deployment's name, empty where none is known."""

TIMEOUT = "penstock-timeout-ms"
_EOF = grpc.aio.EOF
_KEYS = frozenset(("authorization", "x-api-key"))
# Of the hop between caller and router. The deadline goes on as grpc's own.
_HOP = frozenset(("user-agent", "te", "content-type", "host", "grpc-accept-encoding", "grpc-encoding", TIMEOUT))
_FOREVER_S = 10 * 365 * 86400.0


@dataclass(slots=True)
class Arrival:
    """A call that was let in, before its messages are read. `service` is None until a message tells."""

    method: str
    metadata: Any
    headers: dict[str, str]
    tenant: Tenant | None
    service: Service | None
    began: float  # of the balancer's clock


@dataclass(slots=True)
class _Plan:
    """Where a call goes, and how long it may take. `lane` None: any arm, drawn by the weights."""

    service: Service
    lane: Lane | None
    decision: Decision | None
    session: bytes | None
    deadline: float  # of the balancer's clock; for the wait only where `unlimited`
    unlimited: bool
    metadata: Pairs
    counted: bool  # for the experiment: it asks the model, and not about it


class Passing:
    """Passes calls on. For one loop."""

    def __init__(
        self, balancer: Balancer, hooks: Hooks, channels: Channels, on_error: OnError, *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._balancer = balancer
        self._hooks = hooks
        self._channels = channels
        self._copies = Copies(balancer, hooks, channels)
        self._on_error = on_error
        self._wall_clock = wall_clock

    async def close(self) -> None:
        """Ends what goes on beside the calls."""
        await self._copies.close()

    def unary(self, arrival: Arrival) -> grpc.RpcMethodHandler:
        """The handler of a call with one message each way."""

        async def handle(message: bytes, context: Context) -> bytes:
            try:
                plan = self._plan(arrival, message, context)
                if arrival.method == V2 + "ModelReady" and not any(lane.upstreams for lane in plan.service.lanes):
                    return ready_answer(plan.service.endpoint.waking)  # a probe wakes nobody
                return await self._unary(arrival, plan, message, context)
            except PenstockError as error:
                await self._refuse(arrival, error, context)
            except grpc.aio.AioRpcError as error:
                await relay(context, error)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except grpc.aio.InternalError:  # of the caller's call: it is over
                raise asyncio.CancelledError from None
            except Exception:
                await self._refuse(arrival, unexpected(arrival.method), context)

        return grpc.unary_unary_rpc_method_handler(handle)

    def stream(self, arrival: Arrival) -> grpc.RpcMethodHandler:
        """The handler of any call: any number of messages each way, in any order."""

        async def handle(messages: object, context: Context) -> None:
            try:
                first = None
                if arrival.service is None:
                    first = await context.read()
                    if first is _EOF:
                        raise InvalidInput("the call ended before a message told which model it is for")
                plan = self._plan(arrival, first, context)
                await self._stream(arrival, plan, first, context)
            except PenstockError as error:
                await self._refuse(arrival, error, context)
            except grpc.aio.AioRpcError as error:
                await relay(context, error)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except grpc.aio.InternalError:  # of the caller's call: it is over
                raise asyncio.CancelledError from None
            except Exception:
                await self._refuse(arrival, unexpected(arrival.method), context)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _refuse(self, arrival: Arrival, error: PenstockError, context: Context) -> NoReturn:
        self._on_error("" if arrival.service is None else arrival.service.endpoint.name, error)
        await abort(context, error)

    # --- before a replica is asked --------------------------------------------------------------------------------

    def _plan(self, arrival: Arrival, message: bytes | None, context: Context) -> _Plan:
        """Where the call goes; it counts for its tenant now. Raises: PenstockError."""
        service = arrival.service
        if service is None:
            name = None if message is None else model_name(arrival.method, message)
            if not name:
                raise InvalidInput("the message does not name a model; name one, or send penstock-endpoint as metadata")
            service = arrival.service = self._balancer.services.get(name)
            if service is None:
                raise NotFound(f"there is no deployment {name!r} here")
        endpoint, headers, hooks = service.endpoint, arrival.headers, self._hooks
        if arrival.tenant is not None:
            hooks.tenants.admit(arrival.tenant, endpoint.name, self._wall_clock())
        left_s = _caller_s(headers, context, self._balancer.clock() - arrival.began)
        decision, counted = None, arrival.method not in ABOUT
        decided = counted and (endpoint.logged or endpoint.sticky or endpoint.contextual)
        if decided and service.drawable and hooks.decisions is not None:
            decision = hooks.decisions.decide(endpoint, headers, b"", random.random())  # no secret
        affinity = endpoint.requests.affinity
        session = user_key(affinity, headers) if affinity is not None else ""
        dropped = _HOP | _KEYS if hooks.tenants.required else _HOP
        return _Plan(
            service,
            None if decision is None else service.lanes[decision.arm],
            decision,
            session.encode() or None,
            self._balancer.clock() + ((endpoint.requests.timeout_s or TIMEOUT_S) if left_s is None else left_s),
            left_s is None,
            tuple((key, value) for key, value in arrival.metadata or () if key not in dropped),
            counted,
        )

    async def _place(self, arrival: Arrival, plan: _Plan, avoid: Upstream | None) -> tuple[Upstream, Link]:
        """A place at a replica and its link, now or later. Raises: PenstockError."""
        tenant, balancer = arrival.tenant, self._balancer
        upstream = await balancer.take(
            plan.service, plan.lane, deadline=plan.deadline, session=plan.session,
            tenant="" if tenant is None else tenant.name, weight=1.0 if tenant is None else tenant.weight,
            avoid=avoid if avoid is not None and len(avoid.lane.upstreams) > 1 else None, again=avoid is not None,
        )  # fmt: skip
        if not upstream.grpc:
            balancer.release(upstream, balancer.clock())
            raise Unsupported(f"the replicas of {plan.service.endpoint.name} do not listen for gRPC")
        return upstream, self._channels.take(upstream)

    def _left_s(self, plan: _Plan) -> float:
        left_s = plan.deadline - self._balancer.clock()
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before the call could be sent to a replica")
        return left_s

    # --- asking ---------------------------------------------------------------------------------------------------

    async def _unary(self, arrival: Arrival, plan: _Plan, message: bytes, context: Context) -> bytes:
        balancer, avoid, service = self._balancer, None, plan.service
        service.budget.request(balancer.clock())
        copy: Copy | None = None
        live: Answer | None = None
        try:
            while True:
                upstream, link = await self._place(arrival, plan, avoid)
                try:
                    left_s = self._left_s(plan)
                    rpc = link.unary(arrival.method)(message, timeout=left_s, metadata=plan.metadata)
                    if service.endpoint.shadow is not None and avoid is None and plan.counted:
                        copy = self._copies.begin(service, arrival.method, message, left_s, plan.metadata)
                    answer: bytes = await rpc
                    live = self._over(arrival, plan, upstream, 200, answer)
                    await _begin_answer(context, plan, upstream, await rpc.initial_metadata())
                    trailers = await rpc.trailing_metadata()
                    if trailers:
                        context.set_trailing_metadata(pairs(trailers))
                    return answer
                except grpc.aio.AioRpcError as error:
                    if self._again(plan, upstream, error):
                        avoid = upstream
                        continue
                    live = self._failed(arrival, plan, upstream, error)
                    await _begin_answer(context, plan, upstream, error.initial_metadata())
                    raise
                except asyncio.CancelledError:
                    self._left(plan, upstream, arrival.began)
                    raise
                finally:
                    balancer.release(upstream, balancer.clock())
                    self._channels.release(link)
        finally:
            if copy is not None:
                self._copies.compare(copy, service.endpoint, arrival.method, live)

    async def _stream(self, arrival: Arrival, plan: _Plan, first: bytes | None, context: Context) -> None:
        balancer, avoid = self._balancer, None
        plan.service.budget.request(balancer.clock())
        while True:
            upstream, link = await self._place(arrival, plan, avoid)
            try:
                timeout_s = None if plan.unlimited else self._left_s(plan)
                rpc = link.stream(arrival.method)(timeout=timeout_s, metadata=plan.metadata)
                connected = False
                try:
                    await rpc.wait_for_connection()
                    connected = True
                    await self._both_ways(arrival, plan, upstream, rpc, first, context)
                    return
                except grpc.aio.AioRpcError as error:
                    if connected or not self._again(plan, upstream, error):
                        self._failed(arrival, plan, upstream, error)
                        await _begin_answer(context, plan, upstream, error.initial_metadata())
                        raise
                    avoid = upstream
                except asyncio.CancelledError:
                    self._left(plan, upstream, arrival.began)
                    raise
                finally:
                    rpc.cancel()  # nothing where it has ended
            finally:
                balancer.release(upstream, balancer.clock())
                self._channels.release(link)

    async def _both_ways(
        self, arrival: Arrival, plan: _Plan, upstream: Upstream, rpc: Any, first: bytes | None, context: Context
    ) -> None:
        """Moves messages, each as soon as there is room for it, until the replica has ended the call."""
        sending = asyncio.ensure_future(_send(rpc, first, context))
        try:
            answered = None
            await _begin_answer(context, plan, upstream, await rpc.initial_metadata())
            while (message := await rpc.read()) is not _EOF:
                if answered is None:
                    answered = self._balancer.clock()
                await context.write(message)
            context.set_trailing_metadata(pairs(await rpc.trailing_metadata()))
            # Of a stream, what counts is the time to its first answer; its length is the caller's own.
            self._over(arrival, plan, upstream, 200, ended=answered)
        finally:
            sending.cancel()
            await asyncio.wait((sending,))
            if not sending.cancelled() and (problem := sending.exception()) is not None:
                _log_sending(problem, arrival.method)

    # --- afterwards -----------------------------------------------------------------------------------------------

    def _again(self, plan: _Plan, upstream: Upstream, error: grpc.aio.AioRpcError) -> bool:
        """Whether the call may be sent to another replica."""
        now, service, fault = self._balancer.clock(), plan.service, fault_of(error)
        if now >= plan.deadline or service.gone:
            return False
        if fault is not Fault.UNREACHED:
            # What a replica refused no code has seen; it may as well be full of its own, so only another one is asked.
            refused = fault is Fault.REFUSED and len(upstream.lane.upstreams) > 1
            repeatable = error.code() is grpc.StatusCode.UNAVAILABLE and service.endpoint.requests.idempotent
            if not ((refused or repeatable) and service.budget.retry(now)):
                return False
        if fault in (Fault.UNREACHED, Fault.LOST):
            self._balancer.failed(upstream)
        upstream.lane.tally.retries += 1
        return True

    def _failed(self, arrival: Arrival, plan: _Plan, upstream: Upstream, error: grpc.aio.AioRpcError) -> Answer:
        if fault_of(error) in (Fault.SAID, Fault.REFUSED):
            status = http_status_of_code(error.code().name)
            return self._over(arrival, plan, upstream, status, (error.details() or "").encode())
        self._balancer.failed(upstream)
        return self._over(arrival, plan, upstream, 0)

    def _left(self, plan: _Plan, upstream: Upstream, began: float) -> None:
        """The caller's call is over: it left, or its deadline passed, which is the replica's time that was too long."""
        now = self._balancer.clock()
        if now >= plan.deadline and not plan.unlimited:
            upstream.lane.tally.add(504, now - began, counted=plan.counted)

    def _over(
        self, arrival: Arrival, plan: _Plan, upstream: Upstream, status: int, body: bytes = b"",
        ended: float | None = None,
    ) -> Answer:  # fmt: skip
        """Counts one answer. `status` as over HTTP; 0: the replica was lost."""
        latency_s = (self._balancer.clock() if ended is None else ended) - arrival.began
        revision = upstream.lane.revision
        if status:
            self._balancer.succeeded(upstream)
        upstream.lane.tally.add(status, latency_s, counted=plan.counted)
        if plan.decision is not None and self._hooks.decisions is not None:
            self._hooks.decisions.answered(plan.service.endpoint, plan.decision, revision, status, latency_s)
        return Answer(revision, status, body, latency_s)


async def _begin_answer(context: Context, plan: _Plan, upstream: Upstream, metadata: Any) -> None:
    """Sends the replica's initial metadata with what the router adds, unless they were sent."""
    added: list[tuple[str, str | bytes]] = [("penstock-revision", str(upstream.lane.revision))]
    if plan.decision is not None and plan.decision.token and plan.decision.revision in (0, upstream.lane.revision):
        added.append(("penstock-decision", plan.decision.token))
    with contextlib.suppress(grpc.aio.InternalError, grpc.aio.UsageError):  # or the caller is gone
        await context.send_initial_metadata((*pairs(metadata), *added))


async def _send(rpc: Any, first: bytes | None, context: Context) -> None:
    """Moves the caller's messages to the replica. When the call is over already, its status says why.

    It writes past grpc.aio's `write`: that one turns the status of a call which the replica ended in this moment, as
    every early refusal does, into INTERNAL "Internal error from Core" (grpcio 1.85, aio/_call.py: `_write`).
    """
    raw = rpc._cython_call
    with contextlib.suppress(cygrpc.InternalError, asyncio.InvalidStateError, grpc.aio.UsageError):
        if first is not None:
            await raw.send_serialized_message(first)
        while (message := await context.read()) is not _EOF:
            await raw.send_serialized_message(message)
        await raw.send_receive_close()


def _log_sending(problem: BaseException, method: str) -> None:
    try:
        raise problem
    except Exception:
        unexpected(method)


def _caller_s(headers: dict[str, str], context: Context, passed_s: float) -> float | None:
    """What is left of the caller's deadline: grpc's own, or `penstock-timeout-ms` from the call's beginning."""
    left_s: float | None = context.time_remaining()
    text = headers.get(TIMEOUT)
    if text is not None:
        try:
            given_s = float(text) / 1000.0
        except ValueError:
            given_s = math.nan
        if not 0.0 < given_s < math.inf:
            raise InvalidInput("penstock-timeout-ms must be a number of milliseconds above 0")
        left_s = given_s - passed_s if left_s is None else min(left_s, given_s - passed_s)
    return None if left_s is None else min(left_s, _FOREVER_S)


def ready_answer(ready: bool) -> bytes:
    """A ModelReadyResponse (and ServerReady, ServerLive: their field 1 is the claim)."""
    return b"\x08\x01" if ready else b""
