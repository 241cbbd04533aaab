"""What a router knows of each replica, revision and endpoint while requests pass: mutable, of the loop's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from penstock.core.errors import PenstockError
from penstock.core.fair import FairQueue, Ticket
from penstock.fleet.router.budget import RetryBudget
from penstock.fleet.router.gain import Gain
from penstock.fleet.router.prefixes import Prefixes
from penstock.fleet.router.prompts import Prompt
from penstock.fleet.router.tally import Tally
from penstock.fleet.routes import Endpoint
from penstock.fleet.routes import Upstream as Address

if TYPE_CHECKING:
    from penstock.fleet.router.upstream import UpstreamConnection

NO_LIMIT = 1 << 60

Key = bytes | Prompt | None
"""What a request brings that says more of its replica than load does: a session's key, or a prompt."""
_MOST_WAITS = 10_000  # of one second, kept for their quantile


class Meter:
    """The load of one revision since it was last reported: the time integral of the requests that are present (waiting
    or at a replica), how many arrived, and how long they waited."""

    __slots__ = ("area", "arrived", "began", "present", "since", "waits")

    def __init__(self, now: float) -> None:
        self.present = 0
        self.area = 0.0
        self.since = self.began = now
        self.arrived = 0
        self.waits: list[float] = []  # of those that waited

    def enter(self, now: float) -> None:
        self.area += self.present * (now - self.since)
        self.since = now
        self.present += 1

    def leave(self, now: float) -> None:
        self.area += self.present * (now - self.since)
        self.since = now
        self.present -= 1

    def waited(self, seconds: float) -> None:
        if len(self.waits) < _MOST_WAITS:
            self.waits.append(seconds)

    def read(self, now: float) -> tuple[float, int, float]:
        """Mean concurrency, arrivals and the 95th percentile of the wait in seconds; counting begins anew."""
        area = self.area + self.present * (now - self.since)
        passed = now - self.began
        concurrency = area / passed if passed > 0 else float(self.present)
        arrived, waits = self.arrived, self.waits
        self.area, self.arrived, self.waits = 0.0, 0, []
        self.since = self.began = now
        sent = max(arrived, len(waits))
        rank = len(waits) - int(sent * 0.05) - 1  # those that did not wait come first
        return concurrency, arrived, sorted(waits)[rank] if 0 <= rank < len(waits) else 0.0


class Upstream:
    """One replica. `limit` is how many requests it may have now: 0 while it is ejected, 1 while it is probed.

    `load`, `given_at`, `prefixes` and `adapters` are of language models (`prefix_choice`): prompt tokens' worth of work
    that is left of its requests, when it was given the last one, what it has probably in its cache, and the adapters
    that it served, with the time, oldest first.
    """

    __slots__ = (
        "adapters", "address", "ejected", "failures", "given_at", "gone", "grpc", "http", "id", "in_flight", "lane",
        "limit", "load", "pool", "prefixes",
    )  # fmt: skip

    def __init__(self, address: Address, lane: Lane) -> None:
        self.address = address
        self.id, self.http, self.grpc = address.id, address.http, address.grpc
        self.lane = lane
        self.in_flight = 0
        self.limit = lane.limit
        self.failures = 0  # in a row
        self.ejected = False
        self.gone = False  # out of the table; what it has still ends
        self.pool: list[UpstreamConnection] = []  # idle ones, the last used at the end
        self.load = 0.0
        self.given_at = 0.0
        self.prefixes = Prefixes()
        self.adapters: dict[str, float] = {}


class Lane:
    """One revision of an endpoint, with the requests that wait for its replicas. Revision 0 is the lane of those that
    wait although no revision has a replica."""

    __slots__ = (
        "balance", "ejected", "gain", "limit", "meter", "queue", "revision", "service", "stamp", "tally", "turn",
        "upstreams", "weight",
    )  # fmt: skip

    def __init__(self, service: Service, revision: int, now: float) -> None:
        self.service = service
        self.revision = revision
        self.weight = 0.0
        self.upstreams: list[Upstream] = []
        self.ejected = 0  # how many of them are
        self.limit = NO_LIMIT  # per upstream
        self.balance = ""  # `least` or `round_robin`, where that was asked for
        self.gain = Gain()  # of language models
        self.turn = 0  # round_robin: whose it is next
        self.meter = Meter(now)
        self.queue: FairQueue[Waiter] | None = None  # made when somebody waits
        self.tally = Tally()
        self.stamp = b"penstock-revision: %d\r\n" % revision  # a header line of its answers

    @property
    def waiting(self) -> int:
        return 0 if self.queue is None else len(self.queue)

    @property
    def usable(self) -> bool:
        """Whether a replica takes requests, now or as soon as it has ended others."""
        return len(self.upstreams) > self.ejected


class Service:
    """One endpoint. `lanes` are in the order of its arms."""

    __slots__ = ("budget", "by_revision", "drawable", "endpoint", "gone", "lanes", "nowhere", "single")

    def __init__(self, endpoint: Endpoint, now: float) -> None:
        self.endpoint = endpoint
        self.lanes: list[Lane] = []
        self.by_revision: dict[int, Lane] = {}
        self.nowhere = Lane(self, 0, now)
        self.budget = RetryBudget(endpoint.requests.retry_budget)
        self.single = True  # one arm only: nothing is drawn
        self.drawable = False  # an arm has a weight
        self.gone = False

    @property
    def waiting(self) -> int:
        return self.nowhere.waiting + sum(lane.waiting for lane in self.by_revision.values())

    @property
    def ready(self) -> bool:
        """Whether it has a replica, or would get one."""
        return self.endpoint.waking or any(lane.upstreams for lane in self.lanes)


class Held(Protocol):
    """Who waits. Exactly one of the two is called, once, unless the waiter is cancelled before."""

    def granted(self, upstream: Upstream) -> None:
        """A place at a replica, to be given back with `Balancer.release`."""

    def refused(self, error: PenstockError) -> None: ...


class Waiter:
    """One request that waits for a replica."""

    __slots__ = ("avoid", "deadline", "drawn", "held", "lane", "session", "since", "tenant", "ticket", "weight")

    def __init__(
        self, held: Held, drawn: Lane | None, session: Key, tenant: str, weight: float, deadline: float,
        since: float, avoid: Upstream | None = None,
    ) -> None:  # fmt: skip
        self.held = held
        self.drawn = drawn  # the arm it was given, whichever stands in; None: any
        self.session = session
        self.tenant = tenant
        self.weight = weight
        self.deadline = deadline
        self.since = since
        self.avoid = avoid
        self.lane: Lane | None = None  # where it waits
        self.ticket: Ticket[Waiter] | None = None


Sleeping = Callable[[Service], None]
