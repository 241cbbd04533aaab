"""One request on its way: which replica it goes to, again where that is safe, and its answer back to the caller.

Theory of operation
-------------------
    begin ─▶ (waits) ─▶ sent ─▶ answer's head ─▶ body ─▶ over
                 ▲        │
                 └─ again ┘        over, from anywhere: the deadline (504), the caller left, no way on (an error)

A request is sent again when no user code can have seen it (the connection was refused, or reset with the request unread
in it; the replica answered NotReady or Overloaded), or when seeing it twice does no harm (`requests.idempotent`, GET).
Not after any byte of the answer reached the caller. What might add load is within the endpoint's budget.

A place at a replica is given back exactly once: by the exchange while a connection is its own, by the connecting task
until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.core.errors import DeadlineExceeded, NotReady, PenstockError, WorkerLost
from penstock.fleet.router.beside import Beside
from penstock.fleet.router.chunked import LAST, chunk
from penstock.fleet.router.lanes import Waiter
from penstock.fleet.router.plan import Plan, first_part, whole_request

if TYPE_CHECKING:
    import asyncio

    from penstock.fleet.router.answer_head import AnswerHead
    from penstock.fleet.router.client import ClientConnection
    from penstock.fleet.router.front import HttpFront
    from penstock.fleet.router.lanes import Key, Lane, Service, Upstream
    from penstock.fleet.router.request_head import Head
    from penstock.fleet.router.talk import Talk
    from penstock.fleet.router.upstream import UpstreamConnection

_NEVER_SEEN = (b"NotReady", b"Overloaded")  # errors that a runtime gives before any user code
_MOST_TRIES = 4  # of what reached a replica


class Exchange:
    """Made when a request is whole, or with the first part of a large one. All on the loop's thread."""

    __slots__ = (
        "_answering", "_began", "_beside", "_body", "_chunked", "_client", "_connection", "_deadline",
        "_front", "_hedge", "_hedge_timer", "_lane", "_pending", "_plan", "_request", "_service", "_session", "_slot",
        "_started", "_streams", "_talk", "_tenant", "_tries", "_upload_over", "_waiter", "_weight", "head_only", "over",
    )  # fmt: skip

    def __init__(
        self, front: HttpFront, client: ClientConnection, request: Head, plan: Plan, body: bytes, streams: bool,
        began: float, tenant: str = "", weight: float = 1.0, talk: Talk | None = None,
    ) -> None:  # fmt: skip
        """`streams`: `body` is the first part only. `began`: when the first byte came (the loop's time). `talk`: it is
        for a language model."""
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
        self._lane: Lane | None = None  # of the arm that it was given
        self._session: Key = None
        self._talk = talk
        self._beside: Beside | None = None
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
            self._lane = front.balancer.draw(service)
        else:
            body = b"" if self._streams else self._body
            self._beside = Beside(front, self._request, plan, body, self._began)
            self._lane, self._session = self._beside.lane, self._beside.session
        talk = self._talk
        if talk is not None and talk.balanced:
            talk.prompt.session = self._beside.session if self._beside is not None else None
            self._session = talk.prompt
        upstream = front.balancer.acquire(service, self._lane, now, self._session)
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
            connection.write(chunk([data]) if self._request.chunked else data)
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

    def _wait(self, now: float, *, again: bool = False) -> None:
        waiter = Waiter(self, self._lane, self._session, self._tenant, self._weight, self._deadline, now)
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
            if connection.usable(self._front.now):
                self._use(connection, hedge=hedge)
                return
            connection.cut()
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
        if self.over or self._started or self._connection or self._hedge or self._pending:
            return  # another try is under way
        self._again(upstream)

    def _use(self, connection: UpstreamConnection, *, hedge: bool) -> None:
        front, request, plan = self._front, self._request, self._plan
        if hedge:
            self._hedge = connection
        else:
            self._connection = connection
        self._tries += 1
        left_s = self._deadline - front.clock()
        if self._streams:
            over = self._upload_over
            connection.uploading = not over
            connection.send(self, first_part(plan, request, self._body, left_s, over))
            self._body = b""
            if not connection.paused:
                self._client.continue_upload()
        else:
            connection.send(self, whole_request(plan, request, self._body, left_s))
        if self._beside is not None and not hedge:
            if self._tries == 1:
                self._beside.sent(None if self._streams else self._body)
            after_s = self._service.endpoint.requests.hedge_after_s
            if after_s is not None and plan.repeatable and not self._streams and self._hedge_timer is None:
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
        upstream = front.balancer.acquire(service, self._lane, now, None, first, again=True)
        if upstream is not None:
            first.lane.tally.retries += 1
            if self._talk is not None:
                self._talk.hedged()
            self._send(upstream, hedge=True)

    # --- trying again ---------------------------------------------------------------------------------------------

    def _again(self, avoid: Upstream | None = None) -> None:
        """The request goes to a replica again, to another one than `avoid`, or waits for one."""
        front = self._front
        now = front.clock()
        try:
            upstream = front.balancer.acquire(self._service, self._lane, now, self._session, avoid, again=True)
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
        other = front.balancer.acquire(
            self._service, self._lane, front.clock(), self._session if self._talk is not None else None, upstream,
            again=True,
        )  # fmt: skip
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
        beside = self._beside
        if beside is not None:
            self._settle(connection)
            more = beside.stamp(lane)
        if self.head_only or head.bodiless:
            length = b"" if head.length is None else b"Content-Length: %d\r\n" % head.length
        else:
            length = b"Content-Length: %d\r\n" % len(body)
        self.over = True
        talk = self._talk
        if talk is not None:
            talk.answers(head.status, upstream)
            talk.pieces((body,))
            talk.over()
        front = self._front
        front.deadlines.discard(self, self._slot)
        self._client.finish(b"%b%b%b" % (head.start, length, more), body, self._request)
        now = front.clock()
        front.balancer.release(upstream, now)
        if upstream.failures:
            front.balancer.succeeded(upstream)
        lane.tally.add(head.status, now - self._began, counted=self._plan.counted)
        if beside is not None:
            beside.whole(head, body, lane.revision, now)

    def head(self, connection: UpstreamConnection, head: AnswerHead) -> None:
        """The head of a longer answer."""
        self._settle(connection)
        self._connection = connection
        lane = connection.upstream.lane
        more = lane.stamp if self._beside is None else self._beside.stamp(lane)
        self._started = True
        self._answering = head.status
        if self._talk is not None:
            self._talk.answers(head.status, connection.upstream)
        request = self._request
        if head.length is not None:
            framing = b"Content-Length: %d\r\n" % head.length
        elif request.http10:
            framing = b""
        else:
            framing = b"Transfer-Encoding: chunked\r\n"
            self._chunked = True
        if self._beside is not None:
            self._beside.begins(head)
        self._client.start(b"%b%b%b" % (head.start, framing, more), request, ends_with_connection=not framing)
        if connection.upstream.failures:
            self._front.balancer.succeeded(connection.upstream)

    def pieces(self, connection: UpstreamConnection, pieces: list[bytes]) -> None:
        """More of the answer's body."""
        if self._beside is not None:
            self._beside.pieces(pieces)
        if self._talk is not None:
            self._talk.pieces(pieces)
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
        if self._beside is not None:
            self._beside.ends(upstream.lane.revision, self._answering, now)
        self._client.end(LAST if self._chunked else b"")

    def lost(self, connection: UpstreamConnection, error: PenstockError) -> None:
        """The replica is gone, or speaks no HTTP."""
        front = self._front
        upstream = connection.upstream
        unread = isinstance(error, NotReady)
        if not unread:
            front.balancer.failed(upstream)
        other = self._part(connection)
        if self.over or other or self._pending:
            return  # a hedge is on its way
        if self._started:
            upstream.lane.tally.add(0, front.clock() - self._began, counted=self._plan.counted)
            self._close()
            self._drop()
            self._client.break_off()
        elif unread and self._may_repeat():
            upstream.lane.tally.retries += 1
            self._again()  # the same replica takes it on another connection, or refuses that
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
        if self._started:
            self._client.break_off()
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
        if self._talk is not None:
            self._talk.over()
        self._front.deadlines.discard(self, self._slot)
        if self._hedge_timer is not None:
            self._hedge_timer.cancel()
            self._hedge_timer = None

    def _let_go(self) -> None:
        """Leaves queue and replicas."""
        self._drop()
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

    def _drop(self) -> None:
        if self._beside is not None:
            self._beside.drop()

    def _settle(self, connection: UpstreamConnection) -> None:
        """One of two tries has won."""
        other = self._hedge if connection is self._connection else self._connection
        if other is not None and other is not connection:
            other.cut()
            self._front.balancer.release(other.upstream, self._front.clock())
        self._connection = self._hedge = None
        if self._hedge_timer is not None:
            self._hedge_timer.cancel()
            self._hedge_timer = None

    def _answer_probe(self) -> None:
        """At zero, a deployment is as ready as it has to be, and a probe must not wake it."""
        self._close()
        self._client.reply(
            200, b'{"name":"%b","ready":true}' % self._service.endpoint.name.encode(), self._request
        )  # fmt: skip
