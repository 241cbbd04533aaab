"""Which replica a request goes to, and the wait for one.

Theory of operation
-------------------
A request belongs to an arm (a lane here). Of the lane's replicas, the one of two random ones that has less in flight
is taken; a session's requests go to the first replica in the order that its key gives, a prompt to where its beginning
is (`prefix_choice`), and `requests.balance` may ask for something else. When all are at their limit, or none is there,
the request waits: fairly between tenants, in the order of arrival within one, bounded, within its deadline.

    free ──acquire──▶ taken ──release──▶ free          waiting ──(release, new table, re-admission)──▶ taken

A replica that refuses or drops connections is ejected for a moment, which doubles each time; then one request probes
it, and its success lets all others in again. When an arm has no replica that can be used, its requests go to the stable
arm, then to any other with a weight: an answer by another revision is better than none.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable

from penstock.core.errors import DeadlineExceeded, NotFound, NotReady, Overloaded, PenstockError
from penstock.core.fair import FairQueue
from penstock.fleet.router.draw import draw, rank
from penstock.fleet.router.lanes import NO_LIMIT, Key, Lane, Service, Sleeping, Upstream, Waiter
from penstock.fleet.router.prefix_choice import choose, enter
from penstock.fleet.router.prompts import Prompt
from penstock.fleet.router.table import EMPTY, CompiledTable
from penstock.fleet.routes import Endpoint

_FIRST_EJECTION_S = 0.05
_LONGEST_EJECTION_S = 2.0
_RETRY_AFTER_S = 1.0
MOST_COPIES = 32  # in flight at one replica, with its other requests: each holds a body until its deadline
_ASKED = ("least", "round_robin")
_ALWAYS = -math.inf  # the time for which no deadline has passed: who waits watches its own, and cancels


class Balancer:
    """The replicas of one router. All methods are for the loop's thread.

    An acquired upstream is given back with `release`, exactly once. `failed` and `succeeded` tell how it went.
    """

    def __init__(
        self, clock: Callable[[], float], call_later: Callable[[float, Callable[[], None]], object],
        *, on_sleeping: Sleeping = lambda service: None, on_gone: Callable[[Upstream], None] = lambda upstream: None,
    ) -> None:  # fmt: skip
        self.clock = clock
        self._call_later = call_later
        self.on_sleeping = on_sleeping
        self.on_gone = on_gone
        self.table: CompiledTable = EMPTY
        self.services: dict[str, Service] = {}
        self.failing: set[str] = set()  # ids that failed since it was last emptied, for the report

    # --- the table ------------------------------------------------------------------------------------------------

    def follow(self, table: CompiledTable) -> None:
        """Takes over a new table: what stays keeps its state; who waits is placed anew."""
        self.table = table
        now = self.clock()
        names = {endpoint.name for endpoint in table.table.endpoints}
        for name in [name for name in self.services if name not in names]:
            self._end(self.services.pop(name))
        for endpoint in table.table.endpoints:
            service = self.services.get(endpoint.name)
            if service is None:
                service = self.services[endpoint.name] = Service(endpoint, now)
            self._update(service, endpoint, now)
        for service in tuple(self.services.values()):
            self._place_again(service)
            for lane in service.lanes:
                self._serve(lane)

    def _update(self, service: Service, endpoint: Endpoint, now: float) -> None:
        service.endpoint = endpoint
        service.budget.share = endpoint.requests.retry_budget
        limit = endpoint.requests.max_in_flight or NO_LIMIT
        known, service.lanes = service.by_revision, []
        service.by_revision = {}
        for arm in endpoint.arms:
            lane = known.pop(arm.revision, None) or Lane(service, arm.revision, now)
            lane.weight, lane.limit = arm.weight, limit
            lane.balance = endpoint.requests.balance if endpoint.requests.balance in _ASKED else ""
            before = {upstream.address: upstream for upstream in lane.upstreams}
            lane.upstreams = [
                before.pop(address) if address in before else Upstream(address, lane) for address in arm.upstreams
            ]
            lane.ejected = sum(upstream.ejected for upstream in lane.upstreams)
            for upstream in lane.upstreams:
                if not upstream.failures:
                    upstream.limit = limit
            for upstream in before.values():
                self._gone(upstream)
            service.lanes.append(lane)
            service.by_revision[arm.revision] = lane
        service.single = len(service.lanes) == 1
        service.drawable = any(lane.weight > 0.0 for lane in service.lanes)
        for lane in known.values():
            for upstream in lane.upstreams:
                self._gone(upstream)
            lane.upstreams, lane.ejected = [], 0
            for waiter in self._empty(lane):
                self._place(service, waiter)

    def _gone(self, upstream: Upstream) -> None:
        upstream.gone = True
        upstream.limit = 0
        self.on_gone(upstream)

    def _end(self, service: Service) -> None:
        service.gone = True
        for lane in (service.nowhere, *service.by_revision.values()):
            for upstream in lane.upstreams:
                self._gone(upstream)
            lane.upstreams, lane.ejected = [], 0
            for waiter in self._empty(lane):
                waiter.held.refused(NotFound(f"the deployment {service.endpoint.name} was deleted"))

    # --- taking and giving back -----------------------------------------------------------------------------------

    def draw(self, service: Service) -> Lane | None:
        """The lane of an arm, by the weights; the stable one where none has a weight."""
        lanes = service.lanes
        if service.drawable:
            return lanes[0] if service.single else lanes[draw(service.endpoint.arms, random.random())]
        return service.by_revision.get(service.endpoint.stable) or (lanes[0] if lanes else None)

    def acquire(
        self, service: Service, drawn: Lane | None, now: float, session: Key = None,
        avoid: Upstream | None = None, *, again: bool = False,
    ) -> Upstream | None:  # fmt: skip
        """A place at a replica of that lane (or of one that stands in for it; None: any, by the weights). None when the
        request has to wait.

        `again`: the request was counted before. `avoid` is never the one.
        """
        lane = self._lane(service, drawn)
        if lane is None or (lane.queue is not None and len(lane.queue)):
            return None  # who waits already comes first
        upstream = self._pick(lane, session, avoid)
        if upstream is not None:
            if isinstance(session, Prompt):
                enter(upstream, session, now)
            upstream.in_flight += 1
            meter = lane.meter
            meter.area += meter.present * (now - meter.since)  # Meter.enter, for the hot path
            meter.since = now
            meter.present += 1
            if not again:
                meter.arrived += 1
        return upstream

    def acquire_in(self, lane: Lane, now: float) -> Upstream | None:
        """A place at a replica of this very lane, for a copy of a request; None when none is free, or when the replica
        has much to do: copies give way, and those for a replica that hangs do not gather here."""
        upstream = None if lane.waiting else self._pick(lane, None, None)
        if upstream is not None and upstream.in_flight >= MOST_COPIES:
            return None
        if upstream is not None:
            upstream.in_flight += 1
            lane.meter.enter(now)
            lane.meter.arrived += 1
        return upstream

    def release(self, upstream: Upstream, now: float) -> None:
        """Gives a place back; who waits longest gets it."""
        upstream.in_flight -= 1
        lane = upstream.lane
        lane.meter.leave(now)
        if lane.queue is not None and len(lane.queue):
            self._serve(lane)

    def succeeded(self, upstream: Upstream) -> None:
        """It answered, whatever the answer."""
        if upstream.failures:
            upstream.failures = 0
            if not upstream.ejected and not upstream.gone:
                upstream.limit = upstream.lane.limit
                self._serve(upstream.lane)

    def failed(self, upstream: Upstream) -> None:
        """It refused or dropped a connection, or says that it is not ready."""
        self.failing.add(upstream.id)
        if upstream.ejected or upstream.gone:
            return
        lane = upstream.lane
        away_s = min(_LONGEST_EJECTION_S, _FIRST_EJECTION_S * 2 ** min(upstream.failures, 10))
        upstream.failures += 1
        upstream.ejected, upstream.limit = True, 0
        upstream.prefixes.clear()  # it may be another process that answers there next
        upstream.adapters.clear()
        lane.ejected += 1
        self._call_later(away_s * random.uniform(0.8, 1.2), lambda: self._admit_again(upstream))
        if not lane.usable:
            self._place_again(lane.service)

    def _admit_again(self, upstream: Upstream) -> None:
        upstream.ejected = False
        if upstream.gone:
            return
        upstream.limit = 1
        upstream.lane.ejected -= 1
        self._place_again(upstream.lane.service)
        self._serve(upstream.lane)

    # --- waiting --------------------------------------------------------------------------------------------------

    def wait(self, service: Service, waiter: Waiter, *, again: bool = False) -> None:
        """Lets a request wait, until `cancel`, or until its `held` is told. Who waits watches its own deadline.

        Raises:
            Overloaded: too many wait already.
            NotReady: no replica is there, and none is coming.
        """
        error = self._join(service, waiter)
        if error is not None:
            raise error
        assert waiter.lane is not None
        if not again:
            waiter.lane.meter.arrived += 1

    def cancel(self, waiter: Waiter) -> None:
        """The request does not wait any more."""
        lane, ticket = waiter.lane, waiter.ticket
        if lane is not None and ticket is not None and ticket.waiting and lane.queue is not None:
            lane.queue.cancel(ticket)
            lane.meter.leave(self.clock())

    async def take(
        self, service: Service, drawn: Lane | None, *, deadline: float, session: Key = None,
        tenant: str = "", weight: float = 1.0, avoid: Upstream | None = None, again: bool = False,
    ) -> Upstream:  # fmt: skip
        """A place at a replica, now or later. `deadline` is of the balancer's clock.

        Raises:
            Overloaded: too many wait already.
            NotReady: no replica is there, and none is coming.
            DeadlineExceeded: it passed while the request waited.
        """
        now = self.clock()
        upstream = self.acquire(service, drawn, now, session, avoid, again=again)
        if upstream is not None:
            return upstream
        held = _Future(asyncio.get_running_loop().create_future())
        waiter = Waiter(held, drawn, session, tenant, weight, deadline, now, avoid)
        self.wait(service, waiter, again=again)
        try:
            async with asyncio.timeout(max(0.0, deadline - now)):
                return await held.future
        except BaseException as error:
            self.cancel(waiter)
            held.forget(self)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"the deadline passed while the request waited for a replica of {service.endpoint.name}"
                ) from None
            raise

    def _join(self, service: Service, waiter: Waiter) -> PenstockError | None:
        endpoint = service.endpoint
        if service.gone:
            return NotFound(f"there is no deployment {endpoint.name}")
        lane = self._lane(service, waiter.drawn)
        if lane is None:
            if not endpoint.waking:
                return NotReady(f"{endpoint.name} has no replica that is ready", retry_after_s=_RETRY_AFTER_S)
            lane = service.nowhere
        most = endpoint.requests.max_waiting
        queue = lane.queue
        if queue is None:
            queue = lane.queue = FairQueue(most)
        full = Overloaded(f"{most} requests wait for {endpoint.name} already", retry_after_s=_RETRY_AFTER_S)
        waiter.lane = lane
        waiter.ticket, out = queue.put(waiter.tenant, waiter.weight, waiter, waiter.deadline)
        if out is waiter.ticket:
            return full
        lane.meter.enter(self.clock())
        if out is not None:
            lane.meter.leave(self.clock())
            out.item.held.refused(full)
        if lane.revision == 0:
            self.on_sleeping(service)
        return None

    def _serve(self, lane: Lane) -> None:
        """Gives free places to those who wait, while there are both."""
        queue = lane.queue
        while queue is not None and len(queue):
            upstream = self._pick(lane, None, None)
            if upstream is None:
                return
            ticket = queue.take(_ALWAYS)
            if ticket is None:
                break
            waiter = ticket.item
            if (waiter.session is not None or waiter.avoid is upstream) and len(lane.upstreams) > 1:
                upstream = self._pick(lane, waiter.session, waiter.avoid) or upstream
            if isinstance(waiter.session, Prompt):
                enter(upstream, waiter.session, self.clock())
            upstream.in_flight += 1
            lane.meter.waited(self.clock() - waiter.since)
            waiter.held.granted(upstream)
            queue = lane.queue
        if lane.queue is not None and not len(lane.queue):
            lane.queue = None  # the next one is made with the bound of its time

    def _place_again(self, service: Service) -> None:
        """Moves those who wait where no replica can be used to where one can."""
        for lane in (service.nowhere, *service.lanes):
            if lane.waiting and not lane.usable:
                for waiter in self._empty(lane):
                    self._place(service, waiter)

    def _place(self, service: Service, waiter: Waiter) -> None:
        if waiter.drawn not in service.lanes:  # its arm is gone: it is drawn anew
            waiter.drawn = None
        error = self._join(service, waiter)
        if error is not None:
            waiter.held.refused(error)
        elif waiter.lane is not None and waiter.lane.usable:
            self._serve(waiter.lane)

    def _empty(self, lane: Lane) -> list[Waiter]:
        waiters = []
        queue, lane.queue = lane.queue, None
        now = self.clock()
        while queue is not None and (ticket := queue.take(_ALWAYS)) is not None:
            lane.meter.leave(now)
            waiters.append(ticket.item)
        return waiters

    # --------------------------------------------------------------------------------------------------------------

    def _lane(self, service: Service, drawn: Lane | None) -> Lane | None:
        """The lane that was drawn, or the one that stands in for it. None: there is no replica at all."""
        if drawn is None:
            drawn = self.draw(service)
        if drawn is not None and len(drawn.upstreams) > drawn.ejected:
            return drawn
        stable = service.by_revision.get(service.endpoint.stable)
        if stable is not None and stable.usable:
            return stable
        # Those without a weight are not for callers: shadows, and arms that a policy took out.
        candidates = [lane for lane in service.lanes if lane.upstreams and (lane.weight > 0.0 or lane is stable)]
        for lane in candidates:
            if lane.usable:
                return lane
        if drawn in candidates:
            return drawn
        return candidates[0] if candidates else None

    def _pick(self, lane: Lane, session: Key, avoid: Upstream | None) -> Upstream | None:
        """A replica below its limit. Full ones are passed over, also by sessions: rather another one than a wait."""
        upstreams = lane.upstreams
        count = len(upstreams)
        if count == 1:
            only = upstreams[0]
            return only if only.in_flight < only.limit and only is not avoid else None
        if not count:
            return None
        if session is not None or lane.balance:
            return self._pick_by(lane, session, avoid)
        first = int(random.random() * count)
        second = int(random.random() * (count - 1))
        one, other = upstreams[first], upstreams[second + (second >= first)]
        if other.in_flight < one.in_flight:
            one = other
        if one.in_flight < one.limit and one is not avoid:
            return one
        free = [upstream for upstream in upstreams if upstream.in_flight < upstream.limit and upstream is not avoid]
        return min(free, key=lambda upstream: upstream.in_flight, default=None)

    def _pick_by(self, lane: Lane, key: Key, avoid: Upstream | None) -> Upstream | None:
        """As `_pick`, by what the request brings or the deployment asks for."""
        upstreams = lane.upstreams
        session = key.session if isinstance(key, Prompt) else key
        if session is not None:
            for place in rank([upstream.id for upstream in upstreams], session):
                upstream = upstreams[place]
                if upstream.in_flight < upstream.limit and upstream is not avoid:
                    return upstream
            return None
        free = [upstream for upstream in upstreams if upstream.in_flight < upstream.limit and upstream is not avoid]
        if not free:
            return None
        if lane.balance == "round_robin":
            lane.turn += 1
            return free[lane.turn % len(free)]
        if lane.balance == "least" or not isinstance(key, Prompt):
            least = min(upstream.in_flight for upstream in free)
            return random.choice([upstream for upstream in free if upstream.in_flight == least])
        return choose(free, key, self.clock())


class _Future:
    """Who waits in a coroutine."""

    def __init__(self, future: asyncio.Future[Upstream]) -> None:
        self.future = future
        self._upstream: Upstream | None = None

    def granted(self, upstream: Upstream) -> None:
        self._upstream = upstream
        if not self.future.done():
            self.future.set_result(upstream)

    def refused(self, error: PenstockError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def forget(self, balancer: Balancer) -> None:
        """Gives back a place that came together with the deadline or a cancellation."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            balancer.release(upstream, balancer.clock())
