"""What happened to each request: values that the senders fill in and the checker reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from penstock.client.options import Tls

# How a request can end, as its caller sees it.
OK: Final = "ok"  # the right answer, or one that `crossed` says is wrong
QUOTA: Final = "quota"  # HTTP 429, gRPC RESOURCE_EXHAUSTED: the caller's own limit
UNAVAILABLE: Final = "unavailable"  # HTTP 503, gRPC UNAVAILABLE: full, starting, or its worker died; may be asked again
DEADLINE: Final = "deadline"  # HTTP 504, gRPC DEADLINE_EXCEEDED
INVALID: Final = "invalid"  # any other HTTP 4xx: the caller's fault
ERROR: Final = "error"  # HTTP 500 and what else there is: the model's or the server's fault
LEFT: Final = "left"  # the caller hung up, as the plan said
REFUSED: Final = "refused"  # no connection could be made
CUT: Final = "cut"  # the connection ended between the request and the end of its answer
LOST: Final = "lost"  # nothing came, long after the deadline
UNSENT: Final = "unsent"  # the generator's fault: no connection was free before the deadline

Outcome = Literal[
    "ok", "quota", "unavailable", "deadline", "invalid", "error", "left", "refused", "cut", "lost", "unsent"
]
OUTCOMES: Final = (OK, QUOTA, UNAVAILABLE, DEADLINE, INVALID, ERROR, LEFT, REFUSED, CUT, LOST, UNSENT)
# Truthful ends of a valid request to a server that is up.
ALLOWED: Final[frozenset[str]] = frozenset({OK, QUOTA, UNAVAILABLE, DEADLINE, LEFT})


@dataclass(frozen=True, slots=True)
class Target:
    """A model of a server that speaks V2. `url` is HTTP's, `grpc` is HOST:PORT."""

    url: str
    model: str
    version: str = ""
    grpc: str | None = None
    api_key: str | None = None
    tls: Tls = field(default_factory=Tls)
    # Where the server's Prometheus counters are, when not at /metrics of `url`.
    metrics_url: str | None = None


@dataclass(slots=True)
class Entry:
    """One request. Times are seconds since the run began; `deadline_s` counts from `scheduled`."""

    number: int
    scheduled: float
    payload: int
    protocol: Literal["http", "grpc"]
    phase: int
    deadline_s: float
    leave_after_s: float | None = None  # when its caller hangs up, from `scheduled`; None is never
    tried: float | None = None  # when the generator came to it; later than `scheduled` by the generator's own fault
    sent: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    code: str = ""  # HTTP status or gRPC code
    detail: str = ""
    version: str = ""  # that the answer names
    ends: int = 0  # outcomes: one is right
    crossed: str = ""  # why the answer is not this request's

    @property
    def id(self) -> str:
        """The request's id on the wire: 16 hexadecimal digits, unlike those of neighbours."""
        # Source: Fibonacci hashing; an odd multiplier permutes the 64-bit numbers.
        return f"{(self.number + 1) * 0x9E3779B97F4A7C15 % 2**64:016x}"

    @property
    def latency_s(self) -> float:
        """From when it was due to its end; infinite without an end."""
        return float("inf") if self.ended is None else self.ended - self.scheduled

    def end(self, now: float, outcome: Outcome, code: str = "", detail: str = "") -> None:
        """Writes an outcome down. The first stands; others are counted."""
        self.ends += 1
        if self.ends == 1:
            self.ended, self.outcome, self.code, self.detail = now, outcome, code, detail[:200]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done to the server, or seen of it, while the load ran."""

    at: float
    what: str
