"""One request on its way: which replica it goes to, again where that is safe, and its answer back to the caller.

Theory of operation
-------------------
    begin ─▶ (waits) ─▶ sent ─▶ answer's head ─▶ body ─▶ over
                 ▲        │
                 └─ again ┘        over, from anywhere: the deadline (504), the caller left, no way on (an error)

A request is sent again when no user code can have seen it (the connection was refused; the replica answered NotReady or
Overloaded), or when seeing it twice does no harm (`requests.idempotent`, GET). Not after any byte of the answer reached
the caller. What might add load is within the endpoint's budget.

A place at a replica is given back exactly once: by the exchange while a connection is its own, by the connecting task
until then.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from penstock.core.errors import DeadlineExceeded, PenstockError, WorkerLost
from penstock.fleet.router.chunked import LAST, chunk
from penstock.fleet.router.hooks import Answer, Decision
from penstock.fleet.router.lanes import Waiter
from penstock.fleet.router.mirroring import Copy
from penstock.fleet.router.plan import Plan, timeout_line
from penstock.fleet.router.sticky import user_key

if TYPE_CHECKING:
    import asyncio

    from penstock.fleet.router.answer_head import AnswerHead
    from penstock.fleet.router.client import ClientConnection
    from penstock.fleet.router.front import HttpFront
    from penstock.fleet.router.lanes import Service, Upstream
    from penstock.fleet.router.request_head import Head
    from penstock.fleet.router.upstream import UpstreamConnection

_NEVER_SEEN = (b"NotReady", b"Overloaded")  # errors that a runtime gives before any user code
_MOST_TRIES = 4  # of what reached a replica


class Exchange:
    """Made when a request is whole, or with the first part of a large one. All on the loop's thread."""

    __slots__ = (
        "_answering", "_began", "_body", "_chunked", "_client", "_connection", "_copy", "_deadline", "_decision",
        "_front", "_hedge", "_hedge_timer", "_index", "_pending", "_plan", "_request", "_service", "_session", "_slot",
        "_started", "_streams", "_tenant", "_tries", "_upload_over", "_waiter", "_weight", "head_only", "over",
    )  # fmt: skip

    def __init__(
        self, front: HttpFront, client: ClientConnection, request: Head, plan: Plan, body: bytes, streams: bool,
        began: float, tenant: str = "", weight: float = 1.0,
    ) -> None:  # fmt: skip
        """`streams`: `body` is the first part only. `began`: when the first byte came (the loop's time)."""
        assert plan.service is not None
        self._front = front
        self._client = client
        self._request = request
        self._plan = plan
        self._service: Service = plan.service
        self._body = body
        self._streams = streams
        self._began = began
        self._deadline = began + plan.timeout_s
        self._tenant = tenant
        self._weight = weight
        self._connection: UpstreamConnection | None = None
        self._hedge: UpstreamConnection | None = None
        self._pending = 0  # connecting tasks
        self._waiter: Waiter | None = None
        self._index: int | None = None
        self._session: bytes | None = None
        self._decision: Decision | None = None
        self._copy: Copy | None = None
        self._hedge_timer: asyncio.TimerHandle | None = None
        self._tries = 0
        self._upload_over = not streams
        self._started = False  # the answer's head is with the caller
        self._answering = 0  # status of the answer whose body is on its way
        self._chunked = False  # it goes out in chunks
        self.head_only = request.method == b"HEAD"
        self.over = False
        self._slot = front.deadlines.add(self, self._deadline)

    # --- the request ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Finds a replica. Raises: PenstockError: the request gets none; `fail` answers with it."""
        front, service, plan = self._front, self._service, self._plan
        now = front.clock()
        service.budget.request(now)
        if plan.plain:
            self._index = 0 if service.single else front.balancer.draw(service)
        else:
            self._choose()
        upstream = front.balancer.acquire(service, self._index, now, self._session)
        if upstream is not None:
            self._send(upstream)
            return
        if plan.ready_probe and service.endpoint.waking:
            self._answer_probe()
            return
        self._wait(now)

    def more(self, data: bytes) -> None:
        """The next part of a streamed body."""
        connection = self._connection
        if connection is None:
            self._body += data
        else:
            connection.write(self._framed(data))
        if connection is None or connection.paused:
            self._client.hold_upload()

    def no_more(self) -> None:
        """The streamed body is complete."""
        self._upload_over = True
        connection = self._connection
        if connection is not None:
            connection.uploading = False
            if self._request.chunked:
                connection.write(LAST)

    def _choose(self) -> None:
        """The arm and the session, where that takes a look at the headers."""
        front, endpoint = self._front, self._service.endpoint
        headers = self._request.headers()
        decisions = front.hooks.decisions if self._plan.counted else None
        if decisions is not None and (endpoint.logged or endpoint.contextual or endpoint.sticky):
            body = b"" if self._streams else self._body
            if self._service.drawable:
                self._decision = decisions.decide(endpoint, headers, body, random.random())
                self._index = self._decision.arm
        elif endpoint.arms:
            self._index = front.balancer.draw(self._service)
        affinity = endpoint.requests.affinity
        if affinity is not None:
            self._session = user_key(affinity, headers).encode("latin-1", "replace") or None

    def _wait(self, now: float, *, again: bool = False) -> None:
        waiter = Waiter(self, self._index, self._session, self._tenant, self._weight, self._deadline, now)
        self._waiter = waiter
        self._front.balancer.wait(self._service, waiter, again=again)

    def granted(self, upstream: Upstream) -> None:
        """Of `lanes.Held`."""
        self._waiter = None
        if self.over or self._front.clock() >= self._deadline:
            self._front.balancer.release(upstream, self._front.clock())
            self.expire()
            return
        self._send(upstream)

    def refused(self, error: PenstockError) -> None:
        """Of `lanes.Held`."""
        self._waiter = None
        self.fail(error)

    def _send(self, upstream: Upstream, *, hedge: bool = False) -> None:
        pool = upstream.pool
        while pool:
            connection = pool.pop()
            if connection.open:
                self._use(connection, hedge=hedge)
                return
        self._pending += 1
        self._front.connect(upstream, self, hedge)

    def connected(self, connection: UpstreamConnection, hedge: bool) -> bool:
        """A connection for this request; False when it is not wanted any more."""
        self._pending -= 1
        if self.over or self._started:
            return False
        self._use(connection, hedge=hedge)
        return True

    def unreachable(self, upstream: Upstream, hedge: bool) -> None:
        """The replica refused the connection: nothing was sent. Its place was given back."""
        self._pending -= 1
        if self.over or self._started or hedge or self._connection is not None:
            return
        self._again(upstream)

    def _use(self, connection: UpstreamConnection, *, hedge: bool) -> None:
        front, request, plan = self._front, self._request, self._plan
        if hedge:
            self._hedge = connection
        else:
            self._connection = connection
        self._tries += 1
        body = self._body
        left_s = self._deadline - front.clock()
        if self._streams:
            framing = (
                b"Transfer-Encoding: chunked\r\n" if request.chunked else b"Content-Length: %d\r\n" % request.length
            )
            data = b"%b%b%b\r\n%b" % (plan.start, framing, timeout_line(left_s), self._framed(body))
            self._body = b""
            connection.uploading = not self._upload_over
            if self._upload_over and request.chunked:
                data += LAST
            connection.send(self, data)
            if not connection.paused:
                self._client.continue_upload()
            if not plan.plain:
                self._beside(connection)
            return
        if request.chunked:  # it came in whole: it has a length now
            framing = b"Content-Length: %d\r\n" % len(body)
            connection.send(self, b"%b%b%b\r\n%b" % (plan.start, framing, timeout_line(left_s), body))
        elif plan.timeout_s - left_s < 0.002:
            connection.send(self, plan.ready + body if body else plan.ready)
        else:
            length = b"" if request.length is None else b"Content-Length: %d\r\n" % request.length
            connection.send(self, b"%b%b%b\r\n%b" % (plan.start, length, timeout_line(left_s), body))
        if not plan.plain and not hedge:
            self._beside(connection)

    def _beside(self, connection: UpstreamConnection) -> None:
        """What goes beside the first try: a copy for a shadow, and soon perhaps a hedge."""
        front, endpoint = self._front, self._service.endpoint
        mirror = front.hooks.mirror
        copied = endpoint.shadow is not None and self._plan.counted
        if copied and mirror is not None and self._copy is None and self._tries == 1:
            if self._streams:
                mirror.skip(endpoint, "too_large")
            elif mirror.wants(endpoint, random.random()):
                self._copy = Copy.begin(front, mirror, self._service, self._request, self._plan, self._body)
        after_s = endpoint.requests.hedge_after_s
        if after_s is not None and self._plan.repeatable and self._hedge_timer is None:
            self._hedge_timer = front.loop.call_later(after_s, self._send_hedge)

    def _send_hedge(self) -> None:
        """Asks a second replica: the first one has not answered in time."""
        front, service = self._front, self._service
        if self.over or self._started or self._hedge is not None or self._connection is None:
            return
        now = front.clock()
        first = self._connection.upstream
        if not service.budget.retry(now):
            return
        upstream = front.balancer.acquire(service, self._index, now, None, first, again=True)
        if upstream is not None:
            first.lane.tally.retries += 1
            self._send(upstream, hedge=True)

    def _framed(self, data: bytes) -> bytes:
        return chunk([data]) if self._request.chunked else data

    # --- trying again ---------------------------------------------------------------------------------------------

    def _again(self, avoid: Upstream) -> None:
        """The request goes to another replica, or waits for one."""
        front = self._front
        now = front.clock()
        try:
            upstream = front.balancer.acquire(self._service, self._index, now, self._session, avoid, again=True)
            if upstream is not None:
                self._send(upstream)
            else:
                self._wait(now, again=True)
        except PenstockError as error:
            self.fail(error)

    def _may_repeat(self) -> bool:
        """Whether a request that reached a replica may go to another one."""
        return (
            not self._streams and not self._started and self._tries < _MOST_TRIES
            and self._service.budget.retry(self._front.clock())
        )  # fmt: skip

    def _turned_away(self, head: AnswerHead) -> bool:
        """Whether an answer says that another replica may be asked: nothing ran, or running twice does no harm."""
        return head.error in _NEVER_SEEN or (head.error == b"WorkerLost" and self._plan.repeatable)

    def _elsewhere(self, connection: UpstreamConnection) -> bool:
        """Whether a request that a replica turned away went to another one, at once. With none free, its caller gets
        the answer that there is."""
        front = self._front
        upstream = connection.upstream
        lane = upstream.lane
        if len(lane.upstreams) < 2 or not self._may_repeat():
            return False
        other = front.balancer.acquire(self._service, self._index, front.clock(), None, upstream, again=True)
        if other is None:
            return False
        lane.tally.retries += 1
        self._part(connection)
        self._send(other)
        return True

    # --- the answer: `upstream.Receiver` --------------------------------------------------------------------------

    def whole(self, connection: UpstreamConnection, head: AnswerHead, body: bytes) -> None:
        """A complete answer."""
        if head.status == 503 and self._turned_away(head) and self._elsewhere(connection):
            return
        upstream = connection.upstream
        lane = upstream.lane
        more = lane.stamp
        if not self._plan.plain:
            more = self._settle(connection, more)
        if self.head_only or head.bodiless:
            length = b"" if head.length is None else b"Content-Length: %d\r\n" % head.length
        else:
            length = b"Content-Length: %d\r\n" % len(body)
        self.over = True
        front = self._front
        front.deadlines.discard(self, self._slot)
        self._client.finish(b"%b%b%b" % (head.start, length, more), body, self._request)
        now = front.clock()
        front.balancer.release(upstream, now)
        if upstream.failures:
            front.balancer.succeeded(upstream)
        lane.tally.add(head.status, now - self._began, counted=self._plan.counted)
        if not self._plan.plain:
            self._learn(connection, head, body, now)

    def head(self, connection: UpstreamConnection, head: AnswerHead) -> None:
        """The head of a longer answer."""
        more = self._settle(connection, connection.upstream.lane.stamp)
        self._connection = connection
        self._started = True
        self._answering = head.status
        request = self._request
        if head.length is not None:
            framing = b"Content-Length: %d\r\n" % head.length
        elif request.http10:
            framing = b""
        else:
            framing = b"Transfer-Encoding: chunked\r\n"
            self._chunked = True
        if self._copy is not None:
            self._copy.live_begins(head)
        self._client.start(b"%b%b%b" % (head.start, framing, more), request, ends_with_connection=not framing)
        if connection.upstream.failures:
            self._front.balancer.succeeded(connection.upstream)

    def pieces(self, connection: UpstreamConnection, pieces: list[bytes]) -> None:
        """More of the answer's body."""
        if self._copy is not None:
            self._copy.live_pieces(pieces)
        client = self._client
        if self._chunked:
            client.write(chunk(pieces))
        else:
            for piece in pieces:
                client.write(piece)

    def end(self, connection: UpstreamConnection) -> None:
        """The answer is complete."""
        self._close()
        now = self._front.clock()
        upstream = connection.upstream
        self._connection = None
        self._front.balancer.release(upstream, now)
        upstream.lane.tally.add(self._answering, now - self._began, counted=self._plan.counted)
        if self._decision is not None:
            self._answered(upstream.lane.revision, self._answering, now)
        if self._copy is not None:
            self._copy.live_ends(upstream.lane.revision, now - self._began)
        self._client.end(LAST if self._chunked else b"")

    def lost(self, connection: UpstreamConnection, error: PenstockError) -> None:
        """The replica is gone, or speaks no HTTP."""
        front = self._front
        upstream = connection.upstream
        front.balancer.failed(upstream)
        other = self._part(connection)
        if self.over or other or self._pending:
            return  # a hedge is on its way
        if self._started:
            upstream.lane.tally.add(0, front.clock() - self._began, counted=self._plan.counted)
            self._finish_lost()
            self._client.cut()  # a body without its end: the one honest thing left to say
        elif isinstance(error, WorkerLost) and self._plan.repeatable and self._may_repeat():
            upstream.lane.tally.retries += 1
            self._again(upstream)
        else:
            upstream.lane.tally.add(0, front.clock() - self._began, counted=self._plan.counted)
            if isinstance(error, WorkerLost):
                error = WorkerLost(
                    f"the replica of {self._service.endpoint.name} was lost while it held this request; it may have "
                    "had an effect",
                    retry_after_s=1.0,
                )
            self.fail(error, revision=upstream.lane.stamp)

    def writable(self, connection: UpstreamConnection) -> None:
        """The replica takes more of the request."""
        if connection is self._connection and not self._upload_over:
            self._client.continue_upload()

    # --- the end --------------------------------------------------------------------------------------------------

    def fail(self, error: PenstockError, *, revision: bytes = b"") -> None:
        """Answers with an error of ours."""
        if self.over:
            return
        self._close()
        self._let_go()
        self._front.count_error(self._service.endpoint.name, error)
        if self._copy is not None:
            self._copy.drop()
        if self._started:
            self._client.cut()
        else:
            self._client.fail(error, self._request, more=revision)

    def expire(self) -> None:
        """The deadline has passed."""
        if self.over:
            return
        holding = self._connection
        if holding is not None:
            holding.upstream.lane.tally.add(504, self._front.clock() - self._began, counted=self._plan.counted)
        name = self._service.endpoint.name
        where = "waited for a replica" if holding is None and not self._pending else "was with its replica"
        self.fail(DeadlineExceeded(f"the deadline passed while the request {where} of {name}"))

    def abandon(self) -> None:
        """The caller left."""
        if not self.over:
            self._close()
            self._let_go()
            if self._copy is not None:
                self._copy.drop()

    def client_full(self, full: bool) -> None:
        """The caller takes no more of the answer, or takes it again."""
        if self._connection is not None and self._started:
            if full:
                self._connection.hold()
            else:
                self._connection.go_on()

    # --------------------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        self.over = True
        self._front.deadlines.discard(self, self._slot)
        if self._hedge_timer is not None:
            self._hedge_timer.cancel()
            self._hedge_timer = None

    def _let_go(self) -> None:
        """Leaves queue and replicas."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._front.balancer.cancel(waiter)
        for connection in (self._connection, self._hedge):
            if connection is not None:
                connection.cut()
                self._front.balancer.release(connection.upstream, self._front.clock())
        self._connection = self._hedge = None

    def _part(self, connection: UpstreamConnection) -> bool:
        """One try is over; whether another one is under way."""
        if connection is self._hedge:
            self._hedge = None
        else:
            self._connection, self._hedge = self._hedge, None
        self._front.balancer.release(connection.upstream, self._front.clock())
        return self._connection is not None

    def _settle(self, connection: UpstreamConnection, stamp: bytes) -> bytes:
        """One of two tries has won; the header lines of its answer."""
        other = self._hedge if connection is self._connection else self._connection
        if other is not None and other is not connection:
            other.cut()
            self._front.balancer.release(other.upstream, self._front.clock())
        self._connection = self._hedge = None
        if self._hedge_timer is not None:
            self._hedge_timer.cancel()
            self._hedge_timer = None
        decision = self._decision
        if decision is not None and decision.token and decision.revision in (0, connection.upstream.lane.revision):
            return b"%bpenstock-decision: %b\r\n" % (stamp, decision.token.encode("ascii", "replace"))
        return stamp

    def _learn(self, connection: UpstreamConnection, head: AnswerHead, body: bytes, now: float) -> None:
        revision = connection.upstream.lane.revision
        if self._decision is not None:
            self._answered(revision, head.status, now)
        if self._copy is not None:
            self._copy.live(
                Answer(
                    revision, head.status, body, now - self._began, head.content_type.decode("latin-1"), head.json_bytes
                )
            )  # fmt: skip

    def _answered(self, revision: int, status: int, now: float) -> None:
        decisions = self._front.hooks.decisions
        if decisions is not None and self._decision is not None:
            decisions.answered(self._service.endpoint, self._decision, revision, status, now - self._began)

    def _finish_lost(self) -> None:
        self._close()
        if self._copy is not None:
            self._copy.drop()

    def _answer_probe(self) -> None:
        """At zero, a deployment is as ready as it has to be, and a probe must not wake it."""
        self._close()
        self._client.reply(
            200, b'{"name":"%b","ready":true}' % self._service.endpoint.name.encode(), self._request
        )  # fmt: skip
