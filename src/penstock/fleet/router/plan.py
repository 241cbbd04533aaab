"""What follows from a request's head under one table: whose it is, and what its replica is sent of it. Kept with the
head, so that a client which repeats itself costs a look at the table's identity."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from penstock.core.errors import InvalidInput, NotFound, PenstockError, Unsupported
from penstock.fleet.router.chunked import LAST, chunk
from penstock.fleet.router.language_paths import for_language, kept_by_one_server, named_in_body
from penstock.fleet.router.request_head import Head
from penstock.fleet.router.table import CompiledTable
from penstock.fleet.spec import LANGUAGE_TIMEOUT_S, TIMEOUT_S

if TYPE_CHECKING:
    from penstock.fleet.router.lanes import Service

Said = tuple[int, bytes, str]
"""An answer of the router's own: status, body, content type."""

Own = Callable[[Head, bytes], Awaitable[Said] | Said]
"""What answers one of the router's own paths. Raises: PenstockError."""

_NO_HEADERS: Final[dict[str, str]] = {}
_KEYS: Final = frozenset((b"authorization", b"x-api-key"))
_AT_ONCE_S = 0.002  # a request that is sent so soon has its whole time left
KEPT_ELSEWHERE: Final = (
    "files, batches and stored responses are a single server's, and this is a router in front of several, none of "
    "which knows what another keeps. Send a batch's requests one by one, and conversations whole in `input` with "
    "`store` false; or ask a server of its own for them: `penstock serve MODEL --state FOLDER`"
)
_SAFE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))


class Plan:
    """Either `error`, `service` or `own` says what to do. Immutable once it is made."""

    __slots__ = (
        "counted", "error", "language", "own", "plain", "plans", "ready", "ready_probe", "repeatable", "routed",
        "service", "start", "table", "timeout_s",
    )  # fmt: skip

    def __init__(self, table: CompiledTable, head: Head, service: Service | None, error: PenstockError | None) -> None:
        self.table = table
        self.service = service
        self.error = error
        self.own: Own | None = None
        self.start = b""
        self.ready = b""
        self.timeout_s = head.timeout_s or TIMEOUT_S
        # For the experiment: it asks the model, not about it, and does not tell a graph what an answer was worth.
        self.counted = head.method not in _SAFE and not head.path.endswith("/feedback")
        self.plain = False
        self.repeatable = False
        self.language = False  # for a language model; without a service, which one is in its body
        self.routed = False  # a deployment's `routes` say that all of the path is its own
        self.plans: dict[str, Plan] = {}  # of the deployments that bodies with this head named
        self.ready_probe = False
        if service is None:
            return
        endpoint = service.endpoint
        requests = endpoint.requests
        usual_s = LANGUAGE_TIMEOUT_S if head.method == b"POST" and for_language(head.path) else TIMEOUT_S
        self.timeout_s = (requests.timeout_s or usual_s) if head.timeout_s is None else head.timeout_s
        # Requests that may be sent twice: the owner says so, or HTTP does.
        self.repeatable = requests.idempotent or head.method in _SAFE
        # Nothing but a draw and a replica: no key, no user, no log, no copy, no second try beside.
        self.plain = not (
            table.table.tenants or requests.affinity or requests.hedge_after_s
            or (self.counted and (endpoint.logged or endpoint.contextual or endpoint.sticky or endpoint.shadow))
        )  # fmt: skip
        self.ready_probe = head.method == b"GET" and head.path == f"/v2/models/{endpoint.name}/ready"
        self.start = head.onward(_KEYS if table.table.tenants else frozenset())
        length = b"" if head.length is None else b"Content-Length: %d\r\n" % head.length
        self.ready = b"%b%b%b\r\n" % (self.start, length, timeout_line(self.timeout_s))

    def for_service(self, head: Head, service: Service) -> Plan:
        """This plan, once it is known whose the request is."""
        if self.service is not None:
            return self
        made = self.plans.get(service.endpoint.name)
        if made is None or made.service is not service:
            made = self.plans[service.endpoint.name] = Plan(self.table, head, service, None)
        return made


def timeout_line(seconds: float) -> bytes:
    """The header that tells a replica how much time is left; at least 1 ms, since nothing would mean none at all."""
    return b"Penstock-Timeout-Ms: %d\r\n" % max(1, round(seconds * 1e3))


def whole_request(made: Plan, head: Head, body: bytes, left_s: float) -> bytes:
    """What a replica is sent of a request whose body is here."""
    if head.chunked:  # it came in whole: it has a length now
        return b"%bContent-Length: %d\r\n%b\r\n%b" % (made.start, len(body), timeout_line(left_s), body)
    if made.timeout_s - left_s < _AT_ONCE_S:
        return made.ready + body if body else made.ready
    length = b"" if head.length is None else b"Content-Length: %d\r\n" % head.length
    return b"%b%b%b\r\n%b" % (made.start, length, timeout_line(left_s), body)


def first_part(made: Plan, head: Head, body: bytes, left_s: float, over: bool) -> bytes:
    """What a replica is sent of a request whose body streams: the head, and what is here. `over`: that is all of it."""
    if head.length is not None:
        return b"%bContent-Length: %d\r\n%b\r\n%b" % (made.start, head.length, timeout_line(left_s), body)
    data = chunk([body]) + (LAST if over else b"")
    return b"%bTransfer-Encoding: chunked\r\n%b\r\n%b" % (made.start, timeout_line(left_s), data)


def plan(head: Head, table: CompiledTable, services: dict[str, Service]) -> Plan:
    """The plan of a request that is not for one of the router's own paths."""
    if not head.path.startswith("/"):
        return Plan(table, head, None, InvalidInput("the target * is for nobody here"))
    endpoint = table.endpoint_for(
        head.host.decode("latin-1"), head.path, head.headers() if table.has_matches else _NO_HEADERS
    )
    language = head.method == b"POST" and for_language(head.path)
    routed = endpoint is not None
    if endpoint is None and language and named_in_body(head.path):
        named = head.get(b"penstock-endpoint")
        if named is None:
            made = Plan(table, head, None, None)
            made.language = True
            return made
        endpoint = table.by_name(named.decode("latin-1"))
    service = None if endpoint is None else services.get(endpoint.name)
    if service is None and kept_by_one_server(head.path):
        return Plan(table, head, None, Unsupported(KEPT_ELSEWHERE))
    if service is None:
        return Plan(table, head, None, NotFound(f"no deployment answers {head.path[:256]}"))
    made = Plan(table, head, service, None)
    made.language = language
    made.routed = routed
    return made
