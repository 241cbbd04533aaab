"""What the fronts of a router ask of its other parts. They call these only where a table wants them: with tenants, for
endpoints that are logged, shadowed or sticky. All calls are on the router's loop and must not block it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from penstock.fleet.router.tenants import Tenants
from penstock.fleet.routes import Endpoint, Table
from penstock.fleet.state import ArmStatistics

Headers = Mapping[str, str]
"""Of a request: names in lower case, a repeated one joined with `, `. Metadata over gRPC."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Which arm a request gets. `token` goes into the answer's `penstock-decision`; empty when nothing is logged."""

    arm: int  # index into the endpoint's arms
    propensity: float
    token: str = ""
    revision: int = 0  # of that arm: the answers of others do not carry the token. 0: any may


@dataclass(frozen=True, slots=True)
class Answer:
    """One arm's whole answer to a mirrored request. `status` 0: none came, `error` says why."""

    revision: int
    status: int
    body: bytes = b""
    latency_s: float = 0.0
    content_type: str = ""
    json_bytes: int | None = None  # V2's Inference-Header-Content-Length, of an answer with binary tensors
    error: str = ""


class Decisions(Protocol):
    """Chooses arms and logs what was chosen. Asked for endpoints that are `logged`, `contextual` or `sticky`."""

    def decide(self, endpoint: Endpoint, headers: Headers, body: bytes, number: float) -> Decision:
        """`number` is uniform in [0, 1). `body` is empty when it is over 256 KiB or of unknown length.

        Raises: InvalidInput: the context that a contextual policy needs is missing or unusable."""
        ...

    def answered(self, endpoint: Endpoint, decision: Decision, revision: int, status: int, latency_s: float) -> None:
        """The request was answered, by `revision`: another one than decided when that had no replica."""
        ...


class Recorder(Protocol):
    """Keeps what is counted. It writes from a thread of its own, and drops rather than waits."""

    def count(self, endpoint: Endpoint, revision: int, more: ArmStatistics) -> None:
        """What one arm of the endpoint's experiment gained since the last call; about once a second."""
        ...


class Feedback(Protocol):
    async def feedback(self, name: str, body: bytes) -> tuple[int, bytes]:
        """The status and the JSON answer to `POST …/NAME/feedback`. Raises: PenstockError."""
        ...


class Mirror(Protocol):
    """Compares the answers of a shadow with those that callers got."""

    def wants(self, endpoint: Endpoint, number: float) -> bool:
        """Whether this request is copied. `number` is uniform in [0, 1)."""
        ...

    def compare(self, endpoint: Endpoint, live: Answer, shadow: Answer) -> None: ...

    def skip(self, endpoint: Endpoint, why: str) -> None:
        """This request is not copied: `too_large`, `behind` (no replica of the shadow is free), `failed`."""
        ...


class TableUser(Protocol):
    """What else wants to know each new table."""

    def table(self, table: Table) -> None: ...


@dataclass(slots=True)
class Hooks:
    """The parts that are there. `tenants` always is; without tenants in the table it lets everybody in."""

    tenants: Tenants
    decisions: Decisions | None = None
    recorder: Recorder | None = None
    feedback: Feedback | None = None
    mirror: Mirror | None = None
