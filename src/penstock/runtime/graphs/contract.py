"""What graphs promise at the door: signatures of graphs of bodies, checks, and what feedback says."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping

import msgspec

from penstock.core.errors import InvalidInput
from penstock.core.graph_calls import BODIES, LEVEL, OPERATION, PROPAGATE, ROUTE, bytes_of
from penstock.core.messages import Request
from penstock.core.servable import Signature
from penstock.core.tensor import Array, TensorSpec
from penstock.graphs.definition import (
    Graph,
)
from penstock.runtime.checking import RequestCheck

_MOST_REWARDS = 10_000


def body_signature(graph: Graph) -> Signature:
    """The signature of a graph of bodies or messages."""
    return Signature(
        (TensorSpec("body", "BYTES", (1,)), TensorSpec("headers", "BYTES", (1,), optional=True)),
        (
            TensorSpec("body", "BYTES", (1,)),
            TensorSpec("status", "INT32", (1,)),
            TensorSpec("content_type", "BYTES", (1,), optional=True),
        ),
        "kserve_graph" if graph.level == BODIES else "seldon_graph",
        batchable=False,
        concurrency=graph.concurrency,
        metadata={LEVEL: graph.level, PROPAGATE: "\n".join(graph.propagate)},
    )


class GraphCheck:
    """As `RequestCheck`, but lets pass what is said to a graph, not asked of it."""

    def __init__(self, signature: Signature) -> None:
        self._check = RequestCheck(signature)

    def __call__(self, request: Request) -> tuple[Hashable, int]:
        """The key and the number of rows. Raises: InvalidInput."""
        if OPERATION in request.parameters:
            return None, 1
        return self._check(request)


class _Reward(msgspec.Struct, forbid_unknown_fields=True):
    route: str
    reward: float


class _Rewards(msgspec.Struct, forbid_unknown_fields=True):
    rewards: list[_Reward]


def read_feedback(body: Array | None) -> Iterator[tuple[Mapping[str, int], float]]:
    """The routes and rewards of `{"route", "reward"}` or `{"rewards": [those]}`.

    Raises:
        InvalidInput: it is something else.
    """
    data = b"" if body is None else bytes_of(body)
    try:
        single = b'"rewards"' not in data
        found = (
            [msgspec.json.decode(data, type=_Reward)] if single else msgspec.json.decode(data, type=_Rewards).rewards
        )
    except (msgspec.MsgspecError, TypeError, RecursionError) as error:
        raise InvalidInput(f'feedback is {{"route": "NAME=0", "reward": 0.7}} or {{"rewards": […]}}: {error}') from None
    if len(found) > _MOST_REWARDS:
        raise InvalidInput(f"at most {_MOST_REWARDS} rewards at once, not {len(found)}")
    checked = [(_route(each.route), each.reward) for each in found]
    for _, reward in checked:
        if not 0.0 <= reward <= 1.0:
            raise InvalidInput(f"the reward is {reward}; it is between 0 and 1")
    yield from checked


def _route(text: str) -> dict[str, int]:
    route: dict[str, int] = {}
    for part in text.split(","):
        name, _, index = part.rpartition("=")
        if not name or not index.isdecimal() or len(index) > 6:
            raise InvalidInput(f"the route {text[:80]!r} is not as the answer's parameter {ROUTE!r} said: NAME=0")
        route[name] = int(index)
    return route
