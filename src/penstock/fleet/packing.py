"""What fits where: GPUs in shares and whole, cores and memory. Placement policies choose with it.

A share of a GPU goes to one device; whole GPUs are devices that nobody else has. A replica without `cpu` or
`memory_bytes` is promised none of it: it is without a limit, and counts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.fleet.spec import Run

if TYPE_CHECKING:  # the folder of the policies lies above
    from penstock.fleet.placement import Place, Taken

# Ten shares of 0.1 are one device, although they sum to less than 1 in binary, and three of a third must be.
UNIT = 10_000


def free_shares(place: Place, taken: Sequence[Taken]) -> dict[int, int]:
    """What is free of each device, in ten-thousandths."""
    free = dict.fromkeys(range(place.gpus), UNIT)
    for replica in taken:
        if replica.place == place.name:
            for device, share in replica.gpu_shares.items():
                if device in free:
                    free[device] -= units(share)
    return free


def units(share: float) -> int:
    """A share in ten-thousandths; the smallest is one of them."""
    return max(1, round(share * UNIT)) if share > 0 else 0


def devices(run: Run, free: Mapping[int, int], *, spread: bool = False) -> dict[int, float] | None:
    """The shares of devices for one replica, or None when they do not fit. Ties go to the lowest index."""
    if run.gpu <= 0:
        return {}
    if run.gpu < 1:
        wanted = units(run.gpu)
        fitting = [(room, device) for device, room in free.items() if room >= wanted]
        if not fitting:
            return None
        _, device = max(fitting, key=lambda one: (one[0], -one[1])) if spread else min(fitting)
        return {device: run.gpu}
    whole = [device for device, room in sorted(free.items()) if room >= UNIT][: int(run.gpu)]
    return dict.fromkeys(whole, 1.0) if len(whole) == int(run.gpu) else None


def size(run: Run) -> tuple[float, int, float]:
    """What a replica asks for, as something to sort by: GPUs first, because they are scarcest."""
    return (run.gpu, run.memory_bytes or 0, run.cpu or 0.0)


def order(runs: Sequence[Run]) -> list[int]:
    """Indices of `runs` in the order in which they are best placed: the largest first."""
    return sorted(range(len(runs)), key=lambda at: size(runs[at]), reverse=True)


@dataclass(frozen=True, slots=True)
class Chosen:
    """`place` None: nothing fits, and `reason` says what was asked and what is free."""

    place: str | None
    gpu_shares: Mapping[int, float]
    reason: str = ""


def choose(run: Run, places: Sequence[Place], taken: Sequence[Taken], *, spread: bool) -> Chosen:
    """The place that is fullest afterwards, or with `spread` the emptiest; of equal ones the first."""
    best: tuple[float, Chosen] | None = None
    misses = []
    for place in places:
        held = [one.run for one in taken if one.place == place.name]
        memory = place.memory_bytes - sum(one.memory_bytes or 0 for one in held)
        cpu = place.cpu - sum(one.cpu or 0.0 for one in held)
        free = free_shares(place, taken)
        shares = devices(run, free, spread=spread)
        if shares is None or not _fits(run, cpu, memory):
            misses.append(_free(place, cpu, memory, free))
            continue
        room = (
            (sum(free.values()) / UNIT - run.gpu) / max(1, place.gpus)
            + (memory - (run.memory_bytes or 0)) / max(1, place.memory_bytes)
            + (cpu - (run.cpu or 0.0)) / max(1e-9, place.cpu)
        )
        rank = -room if spread else room
        if best is None or rank < best[0]:
            best = (rank, Chosen(place.name, shares))
    if best is not None:
        return best[1]
    return Chosen(None, {}, f"asked {_asked(run)}; free: {'; '.join(misses) or 'no places'}")


def _fits(run: Run, cpu: float, memory: int) -> bool:
    # Cores are compared with a little tolerance: ten times 0.1 is one core.
    return (run.memory_bytes or 0) <= max(0, memory) and (run.cpu or 0.0) <= max(0.0, cpu) + 1e-9


def _asked(run: Run) -> str:
    parts = [f"{run.gpu:g} GPU"] if run.gpu else []
    parts += [f"{run.memory_bytes} bytes of memory"] if run.memory_bytes is not None else []
    parts += [f"{run.cpu:g} cores"] if run.cpu is not None else []
    return ", ".join(parts) or "nothing in particular"


def _free(place: Place, cpu: float, memory: int, free: Mapping[int, int]) -> str:
    gpus = ", ".join(f"{room / UNIT:g}" for _, room in sorted(free.items()))
    return f"{place.name} has {cpu:g} cores, {memory} bytes of memory" + (f", GPUs {gpus}" if gpus else "")
