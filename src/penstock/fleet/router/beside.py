"""What goes beside a request of an endpoint that is more than replicas: the decision which arm it gets, with its log,
and the copy for a shadow."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from penstock.fleet.router.hooks import Answer, Decision
from penstock.fleet.router.mirroring import Copy
from penstock.fleet.router.sticky import user_key

if TYPE_CHECKING:
    from penstock.fleet.router.answer_head import AnswerHead
    from penstock.fleet.router.front import HttpFront
    from penstock.fleet.router.lanes import Lane
    from penstock.fleet.router.plan import Plan
    from penstock.fleet.router.request_head import Head


class Beside:
    """Of one request. `lane` is of the arm that it was given, `session` the key that keeps it on one replica."""

    __slots__ = ("_began", "_copy", "_decision", "_front", "_plan", "_request", "_service", "lane", "session")

    def __init__(self, front: HttpFront, request: Head, plan: Plan, body: bytes, began: float) -> None:
        """`body` is empty where it is not known yet.

        Raises:
            InvalidInput: the context that a contextual policy needs is missing or unusable.
        """
        assert plan.service is not None
        self._front = front
        self._request = request
        self._plan = plan
        self._service = plan.service
        self._began = began
        self._decision: Decision | None = None
        self._copy: Copy | None = None
        self.lane: Lane | None = None
        self.session: bytes | None = None
        self._choose(body)

    def _choose(self, body: bytes) -> None:
        front, endpoint = self._front, self._service.endpoint
        headers = self._request.headers()
        decisions = front.hooks.decisions if self._plan.counted else None
        if decisions is not None and (endpoint.logged or endpoint.contextual or endpoint.sticky):
            if self._service.drawable:
                self._decision = decisions.decide(endpoint, headers, body, random.random())
                self.lane = self._service.lanes[self._decision.arm]
        else:
            self.lane = front.balancer.draw(self._service)
        affinity = endpoint.requests.affinity
        if affinity is not None:
            self.session = user_key(affinity, headers).encode("latin-1", "replace") or None

    def sent(self, body: bytes | None) -> None:
        """The request went to its first replica: perhaps a copy goes to the shadow. `body` is None where it streams."""
        endpoint, mirror = self._service.endpoint, self._front.hooks.mirror
        if endpoint.shadow is None or mirror is None or not self._plan.counted:
            return
        if body is None:
            mirror.skip(endpoint, "too_large")
        elif mirror.wants(endpoint, random.random()):
            self._copy = Copy.begin(self._front, mirror, self._service, self._request, self._plan, body)

    def stamp(self, lane: Lane) -> bytes:
        """The header lines of an answer of that revision."""
        decision = self._decision
        if decision is not None and decision.token and decision.revision in (0, lane.revision):
            return b"%bpenstock-decision: %b\r\n" % (lane.stamp, decision.token.encode("ascii", "replace"))
        return lane.stamp

    def whole(self, head: AnswerHead, body: bytes, revision: int, now: float) -> None:
        """The caller has a complete answer."""
        took_s = now - self._began
        self._answered(revision, head.status, took_s)
        if self._copy is not None:
            content_type = head.content_type.decode("latin-1")
            self._copy.live(Answer(revision, head.status, body, took_s, content_type, head.json_bytes))

    def begins(self, head: AnswerHead) -> None:
        """The caller has the head of an answer."""
        if self._copy is not None:
            self._copy.live_begins(head)

    def pieces(self, pieces: list[bytes]) -> None:
        if self._copy is not None:
            self._copy.live_pieces(pieces)

    def ends(self, revision: int, status: int, now: float) -> None:
        """The answer that had begun is complete."""
        self._answered(revision, status, now - self._began)
        if self._copy is not None:
            self._copy.live_ends(revision, now - self._began)

    def drop(self) -> None:
        """The caller got no answer of a replica."""
        if self._copy is not None:
            self._copy.drop()

    def _answered(self, revision: int, status: int, took_s: float) -> None:
        decisions = self._front.hooks.decisions
        if decisions is not None and self._decision is not None:
            decisions.answered(self._service.endpoint, self._decision, revision, status, took_s)
