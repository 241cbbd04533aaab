"""Placement: nothing is promised that is not there, in any order of coming and going."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.fleet.packing import order
from penstock.fleet.placement import Place, Taken, pack, spread
from penstock.fleet.spec import Run

GIB = 1 << 30
shares = st.one_of(
    st.just(0.0), st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.9]), st.floats(0.01, 1), st.sampled_from([1.0, 2.0, 3.0])
)
runs = st.builds(
    lambda gpu, memory, cpu: Run(model="m", gpu=gpu, memory_bytes=memory, cpu=cpu),
    shares,
    st.one_of(st.none(), st.integers(1 << 20, 8 * GIB)),
    st.one_of(st.none(), st.sampled_from([0.1, 0.5, 1.0, 3.0])),
)
places = st.lists(
    st.builds(lambda cpu, memory, gpus: (cpu, memory, gpus), st.integers(1, 8), st.integers(GIB, 16 * GIB), st.integers(0, 4)),
    min_size=1, max_size=3,
).map(lambda all: [Place(f"machine-{at}", float(cpu), memory, gpus) for at, (cpu, memory, gpus) in enumerate(all)])  # fmt: skip
both = pytest.mark.parametrize("plug", [pack.plug, spread.plug], ids=["pack", "spread"])


@both
@given(places, st.lists(st.tuples(runs, st.booleans(), st.integers(0, 99)), max_size=40))
def test_no_resource_is_promised_twice(plug, machines, story):
    taken: list[Taken] = []
    for run, goes, which in story:
        if goes and taken:
            taken.pop(which % len(taken))
        placed = plug.place(run, machines, taken)
        assert placed == plug.place(run, machines, taken)
        if placed.place is None:
            assert "asked" in placed.reason and "free" in placed.reason
            continue
        assert sum(placed.gpu_shares.values()) == pytest.approx(run.gpu)
        assert len(placed.gpu_shares) == (1 if 0 < run.gpu < 1 else int(run.gpu))
        taken.append(Taken(placed.place, run, placed.gpu_shares))
        for machine in machines:
            here = [one for one in taken if one.place == machine.name]
            assert sum(one.run.memory_bytes or 0 for one in here) <= machine.memory_bytes
            assert sum(Fraction(str(one.run.cpu or 0)) for one in here) <= Fraction(machine.cpu)
            for device in range(machine.gpus):
                held = [one.gpu_shares[device] for one in here if device in one.gpu_shares]
                assert sum(held) <= 1 + 1e-3 * len(held)
                assert 1.0 not in held or len(held) == 1, "a whole device is shared"
            assert all(device < machine.gpus for one in here for device in one.gpu_shares)


@both
@given(places, st.lists(runs, max_size=10), runs)
def test_what_fits_is_placed(plug, machines, before, run):
    taken: list[Taken] = []
    for one in before:
        placed = plug.place(one, machines, taken)
        if placed.place is not None:
            taken.append(Taken(placed.place, one, placed.gpu_shares))
    if plug.place(run, machines, taken).place is None:
        for machine in machines:
            here = [one for one in taken if one.place == machine.name]
            memory = machine.memory_bytes - sum(one.run.memory_bytes or 0 for one in here)
            cpu = machine.cpu - sum(one.run.cpu or 0 for one in here)
            free = [1 - sum(one.gpu_shares.get(device, 0) for one in here) for device in range(machine.gpus)]
            needed = run.gpu if run.gpu < 1 else 1.0
            gpus = sum(room >= needed + 1e-3 for room in free) >= max(1, int(run.gpu)) if run.gpu else True
            assert not ((run.memory_bytes or 0) <= memory and (run.cpu or 0) <= cpu and gpus)


def test_shares_are_packed_best_fit_and_whole_devices_stay_whole():
    machine = [Place("here", 8.0, 16 * GIB, gpus=2)]
    taken: list[Taken] = []
    for _ in range(4):
        placed = pack.plug.place(Run(model="m", gpu=0.25), machine, taken)
        taken.append(Taken("here", Run(model="m", gpu=0.25), placed.gpu_shares))
    assert {device for one in taken for device in one.gpu_shares} == {0}
    assert dict(pack.plug.place(Run(model="m", gpu=1.0), machine, taken).gpu_shares) == {1: 1.0}
    assert dict(spread.plug.place(Run(model="m", gpu=0.25), machine, taken[:1]).gpu_shares) == {1: 0.25}


def test_three_thirds_and_ten_tenths_fill_a_device():
    machine = [Place("here", 8.0, 16 * GIB, gpus=1)]
    for share, count in ((1 / 3, 3), (0.1, 10)):
        taken = [Taken("here", Run(model="m", gpu=share), {0: share})] * (count - 1)
        assert pack.plug.place(Run(model="m", gpu=share), machine, taken).place == "here"
        taken = [*taken, taken[0]]
        refused = pack.plug.place(Run(model="m", gpu=share), machine, taken)
        assert refused.place is None and "GPUs 0" in refused.reason


def test_the_largest_first_packs_what_another_order_would_not():
    machine = [Place("here", 8.0, 16 * GIB, gpus=2)]
    asked = [Run(model="m", gpu=share) for share in (0.4, 0.4, 0.6, 0.6)]
    taken: list[Taken] = []
    for at in order(asked):
        placed = pack.plug.place(asked[at], machine, taken)
        assert placed.place is not None
        taken.append(Taken("here", asked[at], placed.gpu_shares))
