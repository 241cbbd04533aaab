"""When which request is due: a pure function of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from penstock.core.errors import InvalidInput
from penstock.ledger.book import ALLOWED, Entry
from penstock.ledger.faults import Fault


@dataclass(frozen=True, slots=True)
class Phase:
    """So many seconds of so many requests a second."""

    seconds: float
    rate: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A run. Shares are fractions from 0 to 1."""

    phases: tuple[Phase, ...]
    deadline_s: float = 1.0
    slack_s: float = 0.1  # an answer this long after its deadline counts as late: wire and generator take time too
    patience_s: float = 5.0  # a request without an answer this long after its deadline is lost
    leave_share: float = 0.0  # callers that hang up at a random time before their deadline
    grpc_share: float = 0.0
    poisson: bool = True  # arrivals of independent callers; False is evenly spaced
    faults: tuple[Fault, ...] = ()
    allowed: frozenset[str] = ALLOWED
    seed: int = 0
    payloads: int = 32  # how many different ones
    rows: int = 1
    connections: int = 1000  # the most HTTP connections at once
    watch_pid: int | None = None  # sample the memory of this process and its children

    def __post_init__(self) -> None:
        for phase in self.phases:
            if phase.seconds <= 0 or phase.rate <= 0:
                raise InvalidInput(f"a phase needs seconds and a rate above 0, got {phase}")
        if not self.phases:
            raise InvalidInput("a plan needs at least one phase")
        for name in ("leave_share", "grpc_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"{name} is a fraction from 0 to 1, got {getattr(self, name)}")
        if self.deadline_s <= 0:
            raise InvalidInput(f"deadline_s is above 0, got {self.deadline_s}")

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)


def entries(plan: Plan, payloads: int) -> Iterator[Entry]:
    """The plan's requests in the order in which they are due. The same plan gives the same ones."""
    random = Random(plan.seed)
    begun, number = 0.0, 0
    for index, phase in enumerate(plan.phases):
        at, end = begun, begun + phase.seconds
        while True:
            at += random.expovariate(phase.rate) if plan.poisson else 1 / phase.rate
            if at >= end:
                break
            leaves = random.random() < plan.leave_share
            yield Entry(
                number,
                at,
                random.randrange(payloads),
                "grpc" if random.random() < plan.grpc_share else "http",
                index,
                plan.deadline_s,
                # Over four decades: before the body is sent, in the queue, in the batch, long after.
                plan.deadline_s * 10 ** (-4 * random.random()) if leaves else None,
            )
            number += 1
        begun = end
