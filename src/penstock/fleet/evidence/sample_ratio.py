"""Do requests reach the arms in the shares that they should? A test that may be looked at all the time.

A sample-ratio mismatch means that something other than the draw decides who is counted: an arm whose answers get lost,
a router with an old table, callers that give up. Comparisons of such arms mean nothing.

Source: Lindon & Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022: a Dirichlet mixture over
shares against the wished ones. The evidence is a martingale while the shares hold, so it reaches 1/α with a chance of
at most α.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def log_evidence(counts: Sequence[float], shares: Sequence[float], concentration: float = 100.0) -> float:
    """Log evidence against the claim that each request goes to an arm with the chance `shares`, which sum to 1.

    Args:
        counts: requests per arm; whatever they are of, each is one draw.
        concentration: how near to the wished shares a mismatch is looked for; the mixture is Dirichlet(concentration
            · shares). 100 finds shares that are off by a tenth, and small ones a little later.
    """
    evidence = math.lgamma(concentration) - math.lgamma(concentration + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        if share <= 0:
            if count > 0:
                return math.inf  # nothing should come here
            continue
        prior = concentration * share
        evidence += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return evidence
