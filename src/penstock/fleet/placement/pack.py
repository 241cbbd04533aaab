"""Packs replicas as tightly as they fit, so that room for large ones stays in one piece: best fit.

Several replicas are placed best in `packing.order`: the largest first (best fit decreasing).
Source: Johnson, Near-optimal Bin Packing Algorithms, 1973.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.fleet.packing import choose
from penstock.fleet.placement import Place, Placed, Taken
from penstock.fleet.spec import Run


class Pack:
    name = "pack"

    def place(self, run: Run, places: Sequence[Place], taken: Sequence[Taken]) -> Placed:
        chosen = choose(run, places, taken, spread=False)
        return Placed(chosen.place, chosen.gpu_shares, chosen.reason)


plug = Pack()
