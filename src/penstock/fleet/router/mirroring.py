"""Sends a copy of a request to a shadow and hands both answers to the mirror. The caller never waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.core.errors import PenstockError
from penstock.fleet.router.hooks import Answer, Mirror
from penstock.fleet.router.plan import Plan
from penstock.fleet.routes import Endpoint

if TYPE_CHECKING:
    from penstock.fleet.router.answer_head import AnswerHead
    from penstock.fleet.router.front import HttpFront
    from penstock.fleet.router.lanes import Service, Upstream
    from penstock.fleet.router.request_head import Head
    from penstock.fleet.router.upstream import UpstreamConnection

_MOST_BYTES = (1 << 20) + 1  # of a body that is kept; one byte more than is compared tells that it was longer


class _Gathered:
    """An answer that comes in pieces."""

    __slots__ = ("body", "head")

    def __init__(self, head: AnswerHead) -> None:
        self.head = head
        self.body = bytearray()

    def add(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.body += piece[: _MOST_BYTES - len(self.body)]

    def answer(self, revision: int, latency_s: float) -> Answer:
        head = self.head
        content_type = head.content_type.decode("latin-1")
        return Answer(revision, head.status, bytes(self.body), latency_s, content_type, head.json_bytes)


class Copy:
    """One copied request. It is the receiver of the shadow's answer."""

    __slots__ = (
        "_answer", "_began", "_connection", "_data", "_endpoint", "_front", "_live", "_live_answer", "_mirror", "_over",
        "_shadow", "_slot", "_timeout_s", "head_only",
    )  # fmt: skip

    def __init__(self, front: HttpFront, mirror: Mirror, endpoint: Endpoint, data: bytes, plan: Plan, head_only: bool):
        self._front = front
        self._mirror = mirror
        self._endpoint = endpoint
        self._data = data
        self._began = front.clock()
        self._timeout_s = plan.timeout_s
        self._connection: UpstreamConnection | None = None
        self._live: _Gathered | None = None
        self._shadow: _Gathered | None = None
        self._live_answer: Answer | None = None
        self._answer: Answer | None = None
        self._over = False
        self._slot = 0
        self.head_only = head_only

    @staticmethod
    def begin(
        front: HttpFront, mirror: Mirror, service: Service, request: Head, plan: Plan, body: bytes
    ) -> Copy | None:  # fmt: skip
        """Sends the copy; None when no replica of the shadow is free."""
        endpoint = service.endpoint
        assert endpoint.shadow is not None
        lane = service.by_revision.get(endpoint.shadow.revision)
        upstream = None if lane is None else front.balancer.acquire_in(lane, front.clock())
        if upstream is None:
            mirror.skip(endpoint, "behind")
            return None
        data = plan.ready + body
        if request.chunked:
            data = b"%bContent-Length: %d\r\n\r\n%b" % (plan.start, len(body), body)
        copy = Copy(front, mirror, endpoint, data, plan, request.method == b"HEAD")
        copy._slot = front.deadlines.add(copy, copy._began + copy._timeout_s)
        while upstream.pool:
            connection = upstream.pool.pop()
            if connection.usable(front.now):
                copy.connected(connection, False)
                return copy
            connection.cut()
        front.connect(upstream, copy, False)
        return copy

    # --- the caller's answer --------------------------------------------------------------------------------------

    def live(self, answer: Answer) -> None:
        """The caller's answer, whole."""
        self._live_answer = answer
        self._compare()

    def live_begins(self, head: AnswerHead) -> None:
        self._live = _Gathered(head)

    def live_pieces(self, pieces: list[bytes]) -> None:
        if self._live is not None:
            self._live.add(pieces)

    def live_ends(self, revision: int, latency_s: float) -> None:
        if self._live is not None:
            self.live(self._live.answer(revision, latency_s))

    def drop(self) -> None:
        """The caller got no answer: there is nothing to compare."""
        self._end()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.cut()
            self._front.balancer.release(connection.upstream, self._front.clock())

    # --- connecting, and the shadow's answer: `upstream.Receiver` -------------------------------------------------

    def connected(self, connection: UpstreamConnection, hedge: bool) -> bool:
        """Of `front.Caller`."""
        if self._over:
            return False
        self._connection = connection
        connection.send(self, self._data)
        return True

    def unreachable(self, upstream: Upstream, hedge: bool) -> None:
        """Of `front.Caller`."""
        self._failed("the shadow's replica refused the connection")

    def whole(self, connection: UpstreamConnection, head: AnswerHead, body: bytes) -> None:
        self._shadow = _Gathered(head)
        self._shadow.add([body])
        self.end(connection)

    def head(self, connection: UpstreamConnection, head: AnswerHead) -> None:
        self._shadow = _Gathered(head)

    def pieces(self, connection: UpstreamConnection, pieces: list[bytes]) -> None:
        assert self._shadow is not None
        self._shadow.add(pieces)

    def end(self, connection: UpstreamConnection) -> None:
        self._give_back(connection)
        assert self._shadow is not None
        now = self._front.clock()
        lane = connection.upstream.lane
        self._front.balancer.succeeded(connection.upstream)
        lane.tally.add(self._shadow.head.status, now - self._began)
        self._answer = self._shadow.answer(lane.revision, now - self._began)
        self._compare()

    def lost(self, connection: UpstreamConnection, error: PenstockError) -> None:
        self._give_back(connection)
        self._front.balancer.failed(connection.upstream)
        connection.upstream.lane.tally.add(0, self._front.clock() - self._began)
        self._failed(error.message)

    def writable(self, connection: UpstreamConnection) -> None: ...

    def expire(self) -> None:
        """The shadow did not answer in the time that the caller had."""
        connection = self._connection
        if connection is not None:
            connection.cut()
            self._give_back(connection)
        self._failed("no answer by the deadline")

    # --------------------------------------------------------------------------------------------------------------

    def _give_back(self, connection: UpstreamConnection) -> None:
        self._connection = None
        self._front.balancer.release(connection.upstream, self._front.clock())

    def _failed(self, why: str) -> None:
        shadow = self._endpoint.shadow
        self._answer = Answer(0 if shadow is None else shadow.revision, 0, error=why)
        self._compare()

    def _compare(self) -> None:
        if self._over or self._live_answer is None or self._answer is None:
            return
        self._end()
        self._mirror.compare(self._endpoint, self._live_answer, self._answer)

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._front.deadlines.discard(self, self._slot)
