"""From what scaling policies ask for to what is wished: the largest answer, between the bounds, and zero only after a
wait. Pure; the controller calls it once per deployment and tick.
"""

from __future__ import annotations

from collections.abc import Mapping

from penstock.fleet.scaling import Load, Size
from penstock.fleet.spec import Replicas


def largest(sizes: Mapping[str, Size]) -> Size:
    """The largest answer of the policies, by name; of equal ones the first. Its memory is empty: each has its own."""
    name, size = max(sizes.items(), key=lambda item: item[1].replicas)
    return Size(size.replicas, f"{name}: {size.reason}")


def bounded(size: Size, bounds: Replicas, load: Load) -> Size:
    """`size` between `bounds`, and not zero before `bounds.zero_after_s` without demand.

    Demand at zero is one replica at least, whatever the policies say. Without samples nobody knows whether there is
    demand, so what runs goes on.
    """
    replicas, reason = size.replicas, size.reason
    if replicas <= 0 and bounds.minimum <= 0:
        idle = idle_s(load)
        if idle is None:
            replicas = min(1, max(load.ready, load.wished))
            reason = f"no samples: what there is stays; {reason}"
        elif idle <= 0:
            replicas, reason = 1, f"requests wait or run; {reason}"
        elif idle < bounds.zero_after_s and max(load.ready, load.wished) > 0:
            replicas, reason = 1, f"idle for {idle:.0f} s, zero after {bounds.zero_after_s:g} s; {reason}"
        else:
            replicas = 0
    within = min(max(replicas, bounds.minimum), bounds.maximum)
    if within > replicas:
        reason = f"minimum {bounds.minimum}; {reason}"
    elif within < replicas:
        reason = f"maximum {bounds.maximum}, wished {replicas}; {reason}"
    return Size(within, reason, size.memory)


def idle_s(load: Load) -> float | None:
    """For how long there was no demand, as far back as samples go: at the last look 0 if there was some. None: no
    samples.

    Demand is a request that runs, waits, or arrived.
    """
    if not load.samples:
        return None
    idle_from = load.samples[-1].at
    for sample in reversed(load.samples):
        if sample.concurrency > 0 or sample.waiting > 0 or sample.requests_per_s > 0:
            if sample is load.samples[-1]:
                return 0.0
            break
        idle_from = sample.at
    return max(0.0, load.now - idle_from)
