"""Which arm a request gets, where that is more than a draw: for endpoints that are logged, sticky or contextual.

Routers decide alike without talking to each other: a sticky caller's arm follows from its key and the weights, a
contextual choice from the parameters in the table. What differs per request is one number, which the caller brings.
"""

from __future__ import annotations

import functools
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import orjson

from penstock.core.errors import InvalidInput
from penstock.fleet.feedback.token import MOST_CONTEXT, sign
from penstock.fleet.router import hooks
from penstock.fleet.router.draw import draw, stick
from penstock.fleet.router.sticky import user_key
from penstock.fleet.routes import Contextual, Endpoint, Table
from penstock.fleet.store.batch import Decision
from penstock.fleet.traffic import ContextualPolicy

CONTEXT_HEADER = "penstock-context"


class Log(Protocol):
    """Where decisions go; `recorder.Recorder` is one."""

    def decided(self, decision: Decision) -> None: ...


@dataclass(frozen=True, slots=True)
class Made(hooks.Decision):
    """A decision of ours, with what is logged of it once it is answered."""

    logged: Decision | None = None


class Decider:
    """The router's `hooks.Decisions`. It is used on one loop and never waits."""

    def __init__(
        self, log: Log, contextual: Callable[[str], ContextualPolicy], *, clock: Callable[[], float] = time.time,
        seed: bytes | None = None,
    ) -> None:  # fmt: skip
        """`contextual` finds the policy plug of a name; `seed` is for tests: ids are unique, not secret."""
        self._log = log
        self._contextual = functools.cache(contextual)  # there are as many as policies in tables
        self._clock = clock
        self._ids = random.Random(os.urandom(32) if seed is None else seed)
        self._secret = ""

    def table(self, table: Table) -> None:
        """Takes the secret of a new table."""
        self._secret = table.secret

    def decide(self, endpoint: Endpoint, headers: hooks.Headers, body: bytes, number: float) -> Made:
        """As `hooks.Decisions.decide`."""
        context: tuple[float, ...] = ()
        if endpoint.contextual is not None:
            context = read_context(endpoint.contextual, headers, body)
            policy = self._contextual(endpoint.contextual.policy)
            arm, propensity = policy.choose(endpoint.contextual, context, number)
        else:
            key = user_key(endpoint.sticky, headers) if endpoint.sticky is not None else ""
            arms = endpoint.arms
            arm = stick(arms, f"{endpoint.name}\0{key}".encode()) if key else draw(arms, number)
            propensity = arms[arm].weight / math.fsum(one.weight for one in arms)
        if not endpoint.logged or not self._secret or propensity <= 0:
            return Made(arm, propensity)
        decision = Decision(
            f"{self._ids.getrandbits(64):016x}", endpoint.name, endpoint.experiment, endpoint.arms[arm].revision,
            min(propensity, 1.0), self._clock(), context,
        )  # fmt: skip
        return Made(arm, propensity, sign(decision, self._secret), decision.revision, decision)

    def answered(
        self, endpoint: Endpoint, decision: hooks.Decision, revision: int, status: int, latency_s: float
    ) -> None:
        """Logs the decision, unless another revision answered in its place: what that did says nothing of this arm."""
        if isinstance(decision, Made) and decision.logged is not None and decision.logged.revision == revision:
            self._log.decided(decision.logged)


def read_context(wanted: Contextual, headers: Mapping[str, str], body: bytes) -> tuple[float, ...]:
    """The context of a request: the header `Penstock-Context`, numbers apart by commas; without it the numbers of the
    only row of the body's first input (V2), instance (V1) or JSON list.

    Raises:
        InvalidInput: there is none, or it has not `wanted.dimension` finite numbers.
    """
    given = headers.get(CONTEXT_HEADER)
    numbers = _from_header(given) if given is not None else _from_body(body)
    if numbers is None:
        raise InvalidInput(
            f"this endpoint chooses by context: send the header Penstock-Context with {wanted.dimension} numbers apart "
            f"by commas, or one row of {wanted.dimension} numbers in a JSON body"
        )
    if len(numbers) != wanted.dimension or len(numbers) > MOST_CONTEXT:
        where = "Penstock-Context" if given is not None else "the body's first row (Penstock-Context would come first)"
        raise InvalidInput(f"the context has {len(numbers)} numbers in {where}; this endpoint takes {wanted.dimension}")
    if not all(map(math.isfinite, numbers)):
        raise InvalidInput("the context has numbers that are not finite")
    return tuple(numbers)


def _from_header(text: str) -> list[float]:
    try:
        return [float(part) for part in text.strip().strip("[]").split(",")]
    except ValueError:
        raise InvalidInput("Penstock-Context is numbers apart by commas, such as 0.5,1,0") from None


def _from_body(body: bytes) -> list[float] | None:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if isinstance(found, dict):
        inputs, instances = found.get("inputs"), found.get("instances")
        if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict):
            found = inputs[0].get("data")
        elif isinstance(instances, list) and len(instances) == 1:
            found = instances[0]
        else:
            return None
    while isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    if not isinstance(found, list) or not all(isinstance(one, (int, float)) for one in found):
        return None
    try:
        return [float(one) for one in found]
    except OverflowError:
        return None
