"""The scenarios, as data: how much load for how long, what breaks, and which outcomes are truthful then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.ledger import ALLOWED

Fault = Literal["", "kill worker", "stop worker", "kill all workers", "terminate", "kill server"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario. A phase is (length, load): multiples of `--seconds` and of the server's own capacity.

    The fault happens when phase 1 begins. The figures are those of phase `judged`; the time until all is well again
    counts from the beginning of phase `back`, None where nothing has to come back.
    """

    name: str
    what: str
    phases: tuple[tuple[float, float], ...]
    fault: Fault = ""
    judged: int = 0
    back: int | None = None
    deadline: float = 0.0  # in multiples of a batch's time; 0 is the usual second
    leave_share: float = 0.0
    bad_share: float = 0.0  # requests with a bad row beside the load, as a multiple of capacity
    allowed: frozenset[str] = ALLOWED

    @property
    def ends_server(self) -> bool:
        return self.fault in ("terminate", "kill server")


# Half of the workers can carry LIGHT: what fails after one of two died is not for want of capacity.
LIGHT, BUSY = 0.4, 0.8

SCENARIOS = (
    Scenario("calm", "80 % load, nothing breaks", ((1.0, BUSY),)),
    Scenario("disconnects", "30 % of the callers hang up, at 80 % load", ((1.0, BUSY),), leave_share=0.3),
    Scenario("bad-row", "one request in nine raises in the model, at 45 % load", ((1.0, LIGHT),), bad_share=0.05),
    Scenario("short-deadline", "deadline of 3 batches' time, at twice the capacity", ((1.0, 2.0),), deadline=3.0),
    Scenario("overload-3x", "3 times the capacity", ((0.25, LIGHT), (0.75, 3.0), (0.75, LIGHT)), judged=1, back=2),
    Scenario("overload-10x", "10 times the capacity", ((0.25, LIGHT), (0.75, 10.0), (0.75, LIGHT)), judged=1, back=2),
    Scenario(
        "kill-worker",
        "SIGKILL to one of two workers, at 40 % load",
        ((0.25, LIGHT), (1.5, LIGHT)),
        fault="kill worker",
        judged=1,
        back=1,
    ),
    Scenario(
        "stop-worker",
        "SIGSTOP to one of two workers, at 40 % load",
        ((0.25, LIGHT), (2.0, LIGHT)),
        fault="stop worker",
        judged=1,
        back=1,
    ),
    Scenario(
        "no-workers",
        "SIGKILL to all workers: does health tell the truth?",
        ((0.25, LIGHT), (1.5, LIGHT)),
        fault="kill all workers",
        judged=1,
        back=1,
    ),
    Scenario(
        "terminate",
        "SIGTERM to the server's main process, at 80 % load",
        ((0.25, BUSY), (0.75, BUSY)),
        fault="terminate",
        judged=1,
        allowed=ALLOWED | {"refused"},
    ),
    Scenario(
        "kill-server",
        "SIGKILL to the server's main process, at 40 % load",
        ((0.25, LIGHT), (0.5, LIGHT)),
        fault="kill server",
        judged=1,
        allowed=ALLOWED | {"refused", "cut"},
    ),
)
