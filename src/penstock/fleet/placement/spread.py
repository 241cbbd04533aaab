"""Spreads replicas: each goes to the place, and the device, with the most room, so that a lost one takes few along."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.fleet.packing import choose
from penstock.fleet.placement import Place, Placed, Taken
from penstock.fleet.spec import Run


class Spread:
    name = "spread"

    def place(self, run: Run, places: Sequence[Place], taken: Sequence[Taken]) -> Placed:
        chosen = choose(run, places, taken, spread=True)
        return Placed(chosen.place, chosen.gpu_shares, chosen.reason)


plug = Spread()
