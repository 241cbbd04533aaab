"""The route table: everything a router needs, as one immutable JSON document.

The controller publishes a new version of it whenever something in it changes; routers long-poll for it and keep the
last one on disk, so that a router can start and serve while the controller is dead. It is for routers only:
it carries the digests of tenants' keys.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from penstock.fleet.spec import Match, Requests, Shadow, Sticky


class Upstream(msgspec.Struct, frozen=True):
    """A ready replica. Addresses are `host:port`; `grpc` may be empty."""

    id: str
    http: str
    grpc: str = ""


class Arm(msgspec.Struct, frozen=True):
    """One revision's share of an endpoint. Weights of an endpoint sum to 1. A shadow's arm has weight 0."""

    revision: int
    weight: float
    upstreams: tuple[Upstream, ...] = ()


class Contextual(msgspec.Struct, frozen=True):
    """What a contextual policy needs to choose per request; `policy` is its name in `fleet.traffic`.

    All are per arm, in the order of the endpoint's arms: `gram` (d·d) and `moment` (d), see `state.ArmStatistics`; or
    what follows from them, `inverse` (d·d) of the regularised gram and `coefficients` (d), so that routers need not
    invert. `()` of an arm: it may not be chosen."""

    policy: str
    dimension: int
    options: dict[str, float] = {}
    gram: tuple[tuple[float, ...], ...] = ()
    moment: tuple[tuple[float, ...], ...] = ()
    inverse: tuple[tuple[float, ...], ...] = ()
    coefficients: tuple[tuple[float, ...], ...] = ()


class Endpoint(msgspec.Struct, frozen=True):
    """One deployment as routers see it."""

    name: str
    arms: tuple[Arm, ...]
    stable: int  # the revision that gets what cannot be drawn
    experiment: int = 0  # id; statistics and decisions are recorded under it
    logged: bool = False  # decisions are logged, and answers carry a token for feedback
    waking: bool = False  # no replica, but one may come: requests are held
    matches: tuple[Match, ...] = ()
    requests: Requests = Requests()
    sticky: Sticky | None = None
    shadow: Shadow | None = None
    contextual: Contextual | None = None


class Tenant(msgspec.Struct, frozen=True):
    """Who may call, and how much. Rates in requests per second; None is no limit."""

    name: str
    key_sha256: str  # hex digest of the key; keys themselves are shown once and never stored
    rate: float | None = None
    burst: int = 1
    quota: int | None = None  # requests per `quota_period_s`, shared by all routers as well as reports allow
    quota_period_s: float = 86400.0
    weight: float = 1.0  # its share where requests wait: weighted fair queueing
    deployments: tuple[str, ...] = ()  # () is all
    tokens_per_minute: int | None = None  # of language models: prompt and output
    tokens_per_day: int | None = None  # days as UTC has them


class Table(msgspec.Struct, frozen=True):
    """All endpoints. `version` only grows, also over restarts of the controller."""

    version: int
    endpoints: tuple[Endpoint, ...] = ()
    tenants: tuple[Tenant, ...] = ()  # none: everybody is let in (loopback only)
    secret: str = ""  # hex; signs decision tokens


def endpoints_key(secret: str) -> str:
    """The key of the platform's own replicas: graphs and models' code call other endpoints with it. It follows from the
    table's secret, so that replicas which outlive a controller keep theirs."""
    return hmac.new(secret.encode(), b"endpoints", hashlib.sha256).hexdigest()


def platform_tenant(secret: str) -> Tenant:
    """Whoever shows that key. No tenant of a user can have this name."""
    return Tenant("_platform", hashlib.sha256(endpoints_key(secret).encode()).hexdigest())


class Load(msgspec.Struct, frozen=True):
    """What one router saw of one revision since its last report; see `state.LoadSample` for the fields."""

    deployment: str
    revision: int  # 0: held for no revision in particular, because there is no replica
    concurrency: float
    requests: int  # arrived since the last report
    queue_wait_s: float
    waiting: int


class Report(msgspec.Struct, frozen=True):
    """A router's word to the controller: each second, and at once when a request begins to wait for a sleeping
    deployment. `failing` are replicas that refused or dropped connections."""

    router: str
    table_version: int
    seconds: float  # since its last report
    loads: tuple[Load, ...] = ()
    failing: tuple[str, ...] = ()
    quota_used: dict[str, int] = {}  # by tenant, since its last report
    tokens_used: dict[str, int] = {}  # of language models, by tenants with a number per day


class Reply(msgspec.Struct, frozen=True):
    """The controller's answer: the tenants whose quota is used up, by all routers together, until when (epoch, s), and
    this router's part (0 to 1) of the rate of tenants that call through several routers; who is not named has all."""

    exhausted: dict[str, float] = {}
    shares: dict[str, float] = {}
    tokens_exhausted: dict[str, float] = {}  # as `exhausted`, of tokens per day
