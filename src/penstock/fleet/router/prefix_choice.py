"""Which replica a prompt goes to: the one that has most of its beginning, as long as that costs less than it saves.

A replica's load is what is left of its requests: prompt tokens to be read (those that it is not believed to have),
output tokens to be written at `DECODE_COST` each, and something for each request. A replica that has `LEAST_SHARE` of
the prompt or more, and most of all, is taken unless it has more to do than the least loaded one by over

- what the match saves beyond what that one has: while a replica is idle, waiting for another one has to pay; or
- `MOST_WAIT` times that, as long as its load is below `MOST_OVER_MEAN` times the mean: under load all replicas have
  much to do, and what a match saves is saved for everybody. Source of the bound: consistent hashing with bounded loads,
  Mirrokni, Thorup, Zadimoghaddam, SODA 2018.

So a beginning that many share comes to be on as many replicas as its load needs. What is matched by less goes to the
replica with the fewest requests, as `least` does it: counts are certain, the loads are estimates. Of equals, first the
one with the longer match, then the first in the order of rendezvous hashing of the beginning: routers, which do not
know of each other, then warm the same replica. (That with less load was tried, and showed no gain beyond the noise.)
Pure, but for a draw between equals where the prompt is too short to be found again.

Of the three numbers only `MOST_WAIT` was tried at other values (1, 2, 4 in tests/simulated_replicas.py: 4 was best
under heavy load, and elsewhere it made little difference); `LEAST_SHARE` and `MOST_OVER_MEAN` are choices.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from penstock.fleet.router.draw import rank
from penstock.fleet.router.lanes import Upstream
from penstock.fleet.router.prefixes import BLOCK_BYTES
from penstock.fleet.router.prompts import BYTES_PER_TOKEN, Prompt

MOST_OVER_MEAN: Final = 1.25
MOST_WAIT: Final = 4.0
"""How many times what a match saves a request may wait for it, within `MOST_OVER_MEAN`."""
LEAST_SHARE: Final = 0.25
"""Of the prompt: what is matched less is no reason to wait."""
REQUEST_COST: Final = 64.0
"""Of a request as such, and of those whose prompt was not looked at, in prompt tokens."""
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
    saved = [_saved(upstream, prompt, now) for upstream in free]
    best = max(saved)
    if best > 0.0 and (prompt.adapter or best >= LEAST_SHARE * prompt.tokens):
        loads = [load(upstream) for upstream in free]
        least = min(loads)
        warm = min((place for place in range(len(free)) if saved[place] == best), key=loads.__getitem__)
        other = max(saved[place] for place in range(len(free)) if loads[place] == least)
        worth = best - other
        bound = max(least + worth, min(MOST_OVER_MEAN * sum(loads) / len(loads), least + MOST_WAIT * worth))
        if loads[warm] <= bound:
            return free[warm]
    fewest = min(upstream.in_flight for upstream in free)
    places = [place for place in range(len(free)) if free[place].in_flight == fewest]
    if len(places) > 1 and best > 0.0:  # of equals, the one that has more
        most = max(saved[place] for place in places)
        places = [place for place in places if saved[place] == most]
    if len(places) == 1:
        return free[places[0]]
    if not prompt.keys:  # nothing worth finding again: routers need not agree on where it was
        return free[random.choice(places)]
    return free[places[rank([free[place].id for place in places], prompt.root)[0]]]


def enter(upstream: Upstream, prompt: Prompt, now: float) -> None:
    """The replica gets the prompt: its load grows, and from now on it has this beginning."""
    leave(prompt)
    prompt.matched = upstream.prefixes.match(prompt.keys, now)
    prompt.prefill = max(0.0, prompt.tokens - prompt.matched * TOKENS_PER_BLOCK)
    prompt.upstream = upstream
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


def _saved(upstream: Upstream, prompt: Prompt, now: float) -> float:
    """Prompt tokens that need not be read there again, and what loading an adapter would be."""
    saved = upstream.prefixes.match(prompt.keys, now) * TOKENS_PER_BLOCK
    if prompt.adapter and upstream.adapters.get(prompt.adapter, now - _ADAPTER_S) > now - _ADAPTER_S:
        saved += _ADAPTER_COST
    return saved
