"""The bodies of `POST …/feedback`: bytes to rewards, and what became of them to bytes.

A reward is acknowledged only once it is written, and a caller that got no answer sends it again: the same token counts
once and gets the same answer. A second reward for one decision is refused when it differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from penstock.core.errors import AlreadyExists, InvalidInput, NotFound, PenstockError, TooLarge
from penstock.core.http_status import http_status
from penstock.core.nearest import nearest
from penstock.fleet.feedback.token import VALID_S, verify
from penstock.fleet.routes import Table
from penstock.fleet.store.batch import Outcome, Reward

MOST_REWARDS = 1000  # in one call
MOST_BYTES = 4 << 20
# Whole numbers up to here are exact in a float64, and their squares add up without overflow.
MOST_REWARD = 1e15


@dataclass(frozen=True, slots=True)
class Call:
    """The rewards of one call, each a reward or why it is none; `bulk` says which form the answer has."""

    entries: tuple[Reward | PenstockError, ...]
    bulk: bool

    @property
    def rewards(self) -> tuple[Reward, ...]:
        """Those to be written, in their order."""
        return tuple(entry for entry in self.entries if isinstance(entry, Reward))


def read(name: str, body: bytes, table: Table, now: float) -> Call:
    """The rewards in a body: `{"token": …, "reward": …}`, or `{"rewards": [those]}`.

    Raises:
        NotFound: there is no deployment `name`.
        TooLarge: more rewards or bytes than one call may have.
        InvalidInput: no such document; in the single form also a bad token or reward.
    """
    known = [endpoint.name for endpoint in table.endpoints]
    if name not in known:
        raise NotFound(f"there is no deployment {name[:80]!r}{nearest(name, known)}")
    if len(body) > MOST_BYTES:
        raise TooLarge(f"the body has {len(body):,} bytes; one call has at most {MOST_BYTES:,}")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInput('the body is {"token": …, "reward": …} or {"rewards": [those]}')
    if "rewards" not in document:
        return Call((_reward(document, name, table.secret, now),), bulk=False)
    listed = document["rewards"]
    if not isinstance(listed, list) or not listed or document.keys() != {"rewards"}:
        raise InvalidInput("rewards stands alone, and is a list of at least one reward")
    if len(listed) > MOST_REWARDS:
        raise TooLarge(f"{len(listed):,} rewards; one call has at most {MOST_REWARDS:,}: send several")
    entries: list[Reward | PenstockError] = []
    for one in listed:
        try:
            entries.append(_reward(one, name, table.secret, now))
        except InvalidInput as error:
            entries.append(error)
    return Call(tuple(entries), bulk=True)


def answer(call: Call, outcomes: Sequence[Outcome]) -> tuple[int, bytes]:
    """Status and body, once the rewards of `call` were written with these outcomes.

    The single form has 200, 400 or 409. In bulk each entry has its own answer, and the whole is 200 only when every
    reward counts; otherwise 400, or 409 when all that was refused had another reward before.
    """
    left = iter(outcomes)
    entries: list[dict[str, object]] = []
    refused: list[PenstockError] = []
    for entry in call.entries:
        problem = entry if isinstance(entry, PenstockError) else _problem(entry, next(left))
        if problem is None:
            assert isinstance(entry, Reward)
            made = entry.decision
            entries.append(
                {
                    "decision": made.id, "experiment": made.experiment, "revision": made.revision, "reward": entry.value
                }
            )  # fmt: skip
        else:
            refused.append(problem)
            entries.append({"error": problem.message, "status": http_status(problem)})
    if not call.bulk:
        if refused:
            raise refused[0]
        return 200, orjson.dumps(entries[0])
    status = max({http_status(problem) for problem in refused}, default=200)
    if any(http_status(problem) != 409 for problem in refused):
        status = 400
    summary = {"counted": len(entries) - len(refused), "refused": len(refused), "rewards": entries}
    return status, orjson.dumps(summary)


def _problem(reward: Reward, outcome: Outcome) -> PenstockError | None:
    if outcome.value is None:
        return InvalidInput(
            "the decision is too old: rewards of its time were deleted to keep the store small, "
            f"though a token may be good for {VALID_S / 86400:.0f} days"
        )
    if outcome.value != reward.value:
        return AlreadyExists(f"this decision has the reward {outcome.value!r} already; it keeps it")
    return None


def _reward(entry: object, name: str, secret: str, now: float) -> Reward:
    if not isinstance(entry, dict):
        raise InvalidInput('a reward is {"token": …, "reward": …}')
    for key in entry:
        if key not in ("token", "reward"):
            raise InvalidInput(f"there is no {key[:80]!r} in a reward{nearest(key, ('token', 'reward'))}")
    decision = verify(entry.get("token"), secret, name, now)
    value = entry.get("reward")
    if not isinstance(value, (bool, int, float)):
        raise InvalidInput("reward is a number (or true for 1, false for 0)")
    if not math.isfinite(value) or abs(value) > MOST_REWARD:
        raise InvalidInput(f"reward is {value:g}; it lies between -{MOST_REWARD:g} and {MOST_REWARD:g}")
    return Reward(decision, float(value))
