"""Which replica a prompt goes to: the one where it, and those who are there, lose least time by it.

What a prompt costs at a replica, in prompt tokens, is

- what the replica has to read before: the part of its other prompts that it is not believed to have, until their first
  token came; and `REQUEST_COST` and a little of the output for each request there;
- what has to be read of this one: the part that the replica is not believed to have, as far as matches were seen to be
  worth it (`gain`). That is lost by the prompt once, and by `SHARED` of the requests that are there: all wait in
  the same steps.

So a beginning stays where it is while waiting there costs less than reading it again, and one that many share comes to
be on as many replicas as its load needs: the more requests a warm replica has, the cheaper another one is; the more
all have to do, the dearer is reading anything twice. What has nothing in common with anything goes to the replica that
reads it first. Of equals that have something to do, the one that was given something longest ago; of idle ones, the
first in the order of rendezvous hashing of the beginning: routers, which do not know of each other, then warm the same
replica. Pure, but for a draw between equals where the prompt is too short to be found again.

`SHARED` and `REQUEST_COST` were tried at other values in virtual time (tests/simulated_replicas.py: 0, 0.25, 0.5, 1 and
0, 64, 200): with 0 and 200 shared prompts gained less under load, the others differ by little. Counting what is read
twice or one and a half times was tried and is worse where all share one beginning. An earlier form, which took the
replica with the longest match within bounds of the mean load, gained up to a fifth less under load, and as much else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from penstock.fleet.router.draw import rank
from penstock.fleet.router.lanes import Upstream
from penstock.fleet.router.prefixes import BLOCK_BYTES
from penstock.fleet.router.prompts import BYTES_PER_TOKEN, Prompt

REQUEST_COST: Final = 64.0
"""Of a request as such, and of those whose prompt was not looked at, in prompt tokens."""
SHARED: Final = 0.5
"""How many of a replica's requests wait for what another one reads: who is about to end hardly does."""
TOKENS_PER_BLOCK: Final = BLOCK_BYTES / BYTES_PER_TOKEN
_ADAPTER_COST = 256.0  # loading an adapter, in prompt tokens: what it may cost to wait where it is loaded already
MOST_ADAPTERS: Final = 64  # remembered per replica
_ADAPTER_S = 600.0


def load(upstream: Upstream) -> float:
    """What a replica has to do, in prompt tokens."""
    return upstream.load + REQUEST_COST * upstream.in_flight


def choose(free: Sequence[Upstream], prompt: Prompt, now: float) -> Upstream | None:
    """One of the replicas that are below their limits; None of none."""
    if len(free) < 2:
        return free[0] if free else None
    costs = [_cost(upstream, prompt, now) for upstream in free]
    least = min(costs)
    places = [place for place, cost in enumerate(costs) if cost == least]
    if len(places) == 1:
        return free[places[0]]
    if any(free[place].in_flight for place in places):  # who had its last one longest ago has less left of it
        return free[min(places, key=lambda place: free[place].given_at)]
    if not prompt.keys:  # nothing worth finding again: routers need not agree on where it was
        return free[random.choice(places)]
    return free[places[rank([free[place].id for place in places], prompt.root)[0]]]


def enter(upstream: Upstream, prompt: Prompt, now: float) -> None:
    """The replica gets the prompt: its load grows, and from now on it has this beginning."""
    leave(prompt)
    prompt.matched = upstream.prefixes.match(prompt.keys, now)
    known = prompt.matched * TOKENS_PER_BLOCK * upstream.lane.gain.worth
    prompt.prefill = float(round(max(0.0, prompt.tokens - known)))  # whole numbers: sums of them lose nothing
    prompt.upstream = upstream
    upstream.given_at = prompt.entered = now
    prompt.alone = not upstream.in_flight
    prompt.given = prompt.prefill + prompt.decode
    upstream.load += prompt.given
    upstream.prefixes.use(prompt.keys, now)
    if prompt.adapter:
        upstream.adapters.pop(prompt.adapter, None)
        upstream.adapters[prompt.adapter] = now
        if len(upstream.adapters) > MOST_ADAPTERS:
            del upstream.adapters[next(iter(upstream.adapters))]


def begun(prompt: Prompt) -> None:
    """The first of the answer is there: its prompt was read."""
    upstream = prompt.upstream
    if upstream is not None and prompt.given > prompt.decode:
        upstream.load -= prompt.given - prompt.decode
        prompt.given = prompt.decode


def leave(prompt: Prompt) -> None:
    """Its replica has nothing more to do for it."""
    upstream, prompt.upstream = prompt.upstream, None
    if upstream is not None:
        upstream.load = max(0.0, upstream.load - prompt.given)
        prompt.given = 0.0


def first_token(prompt: Prompt, now: float) -> None:
    """A stream's first token came."""
    upstream = prompt.upstream
    if upstream is not None and prompt.alone and prompt.tokens > 0.0:
        upstream.lane.gain.observe(
            prompt.tokens, prompt.matched * TOKENS_PER_BLOCK / prompt.tokens, now - prompt.entered
        )  # fmt: skip


def _cost(upstream: Upstream, prompt: Prompt, now: float) -> float:
    """Of a prompt at a replica, in prompt tokens."""
    saved = upstream.prefixes.match(prompt.keys, now) * TOKENS_PER_BLOCK * upstream.lane.gain.worth
    unread = max(0.0, prompt.tokens - saved)
    if prompt.adapter and upstream.adapters.get(prompt.adapter, now - _ADAPTER_S) <= now - _ADAPTER_S:
        unread += _ADAPTER_COST
    return load(upstream) + unread * (1.0 + SHARED * upstream.in_flight)
