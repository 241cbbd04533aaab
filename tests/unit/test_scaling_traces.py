"""P11: scaling policies in a closed loop, on replayed traces, with a simulated clock."""

from __future__ import annotations

import pytest
from scaling_simulator import constant, ramp, sawtooth, simulate, spike, step

from penstock.fleet.scaling import concurrency, queue_wait, rps, schedule

# A replica takes 4 requests at once, 0.1 s each on average: it carries 40 a second, and is asked to carry 28.
ROOM = {
    "concurrency": {"concurrency": (concurrency.plug, concurrency.plug.options({"target": 4}))},
    "rps": {"rps": (rps.plug, rps.plug.options({"target": 40}))},
    "queue_wait": {"queue_wait": (queue_wait.plug, queue_wait.plug.options({"goal_s": 0.05}))},
}
every = pytest.mark.parametrize("policy", sorted(ROOM))


def run(rate, policy, seconds, **how):
    return simulate(rate, ROOM[policy], seconds=seconds, **{"slots": 4, **how})


@every
def test_a_step_is_decided_within_two_seconds_and_met_soon(policy, figure):
    decided, waits = [], []
    for seed in range(3):
        outcome = run(step(25, 250, 200), policy, 500, seed=seed)
        decided.append(outcome.first_growth(200))
        waits.append(outcome.wait(0.99, 300))
        assert outcome.late == 0
        assert 7 <= outcome.size_at(499) <= 20, outcome.wished  # 250 a second are 6.25 replicas in full use
        if policy != "queue_wait":
            assert outcome.size_at(230) >= 7
    figure("P11", f"first decision after a tenfold step, {policy}", max(decided), "s", goal="≤ 2 s")
    assert max(decided) <= 2.0
    assert max(waits) < 1.0


@every
def test_constant_load_with_noise_changes_no_direction_in_half_an_hour(policy, figure):
    turns = {}
    for seed, rate in enumerate((27, 55)):  # --soak runs many more
        outcome = run(constant(rate), policy, 300 + 1800, seed=seed)
        turns[rate] = outcome.turns(300)
        assert outcome.late == 0
    figure("P11", f"changes of direction in 30 min of constant load, {policy}", sum(turns.values()), "", goal="0")
    assert not any(turns.values()), turns


@every
@pytest.mark.soak
def test_constant_load_of_many_sizes_changes_no_direction_in_half_an_hour(policy):
    turns = {}
    for seed in range(5):
        for rate in (1, 2, 5, 9, 14, 27, 28, 29, 55, 57, 84, 90, 140, 200):
            turns[seed, rate] = run(constant(rate), policy, 300 + 1800, seed=seed).turns(300)
    assert sum(1 for count in turns.values() if count) <= 1, turns  # chance alone may do it once in so many


def test_with_knatives_numbers_alone_constant_load_flaps():
    """What `slack`, `noise` and `settle_s` are for; it also shows that the test above can fail."""
    options = rps.plug.options({"target": 40, "slack": 0, "noise": 0, "settle_s": 0})
    outcome = simulate(constant(55), {"rps": (rps.plug, options)}, seconds=1200, slots=4, seed=4)
    assert outcome.turns(300) > 5


@every
def test_a_ramp_is_followed_without_turning_back(policy):
    outcome = run(ramp(5, 300, 600), policy, 900, seed=1)
    assert outcome.late == 0
    assert outcome.turns(60) == 0, outcome.wished
    assert outcome.size_at(899) >= 8
    assert outcome.wait(0.99) < 1.0


@every
def test_a_spike_is_answered_and_given_back(policy, figure):
    outcome = run(spike(20, 400, 200, 15), policy, 1500 if policy == "queue_wait" else 500, seed=1)
    assert outcome.late == 0
    assert max(size for _, size in outcome.wished) >= 4
    assert outcome.size_at(499 if policy != "queue_wait" else 1499) <= 4, outcome.wished
    figure("P11", f"longest wait in a spike to 20 times the load for 15 s, {policy}", outcome.wait(1.0), "s")


@every
def test_a_sawtooth_costs_less_than_its_peak_for_ever_and_loses_nothing(policy, figure):
    outcome = run(sawtooth(10, 200, 300), policy, 1500, seed=1)
    assert outcome.late == 0
    assert outcome.wait(0.99, 60) < 1.0
    peak = max(size for _, size in outcome.wished)
    figure("P11", f"replica-seconds used of busy ones, sawtooth, {policy}",
           outcome.replica_seconds / outcome.busy_seconds, "x")  # fmt: skip
    assert outcome.replica_seconds <= peak * 1500
    assert outcome.replica_seconds / outcome.busy_seconds < 5


def test_long_streams_are_finished_and_leave_nothing_behind():
    """Few requests of minutes each: shrinking waits for them, and when they have drained the replicas go."""
    policy = {"concurrency": (concurrency.plug, concurrency.plug.options({"target": 2}))}
    outcome = simulate(
        spike(0, 0.2, 0, 300), policy, seconds=1500, slots=2, minimum=0, begin=0, start_s=2.0, timeout_s=60,
        service=lambda chance: chance.uniform(60, 240), seed=2,
    )  # fmt: skip
    assert outcome.late == 0
    assert outcome.answered == len(outcome.held) > 30
    assert outcome.wait(1.0) < 10
    assert outcome.size_at(1499) == 0, outcome.wished[-5:]


@every
def test_from_zero_held_requests_are_answered_inside_their_deadline(policy, figure):
    outcome = run(step(0, 100, 50), policy, 200, minimum=0, begin=0, start_s=1.5, timeout_s=10.0, seed=3)
    assert outcome.late == 0
    first = outcome.wait(1.0, 50, 51)
    figure(
        "P11",
        f"longest wait of what came in the first second at zero, {policy}",
        first,
        "s",
        goal="≤ 10 s, the deadline",
    )
    assert outcome.first_growth(50) <= 2.0


@every
def test_zero_is_reached_and_left_again(policy):
    outcome = run(spike(0, 20, 100, 30), policy, 600, minimum=0, begin=1, seed=3)
    assert outcome.size_at(99) == 0
    assert outcome.size_at(115) >= 1
    assert outcome.size_at(599) == 0
    assert outcome.answered == len(outcome.held) > 400


def test_a_schedule_is_a_floor_under_another_policy():
    rules = [{"from": "15:10", "to": "15:20", "replicas": 5}]  # the simulation begins at 15:06:40 UTC
    policies = {
        **ROOM["concurrency"],
        "schedule": (schedule.plug, schedule.plug.options({"rules": rules, "prewarm_s": 20})),
    }
    outcome = simulate(step(5, 300, 205), policies, seconds=600, slots=4, start_s=15.0, seed=1)
    assert outcome.size_at(179) == 1 and outcome.size_at(182) == 5
    assert dict(outcome.ready)[200.0] == 5  # they are ready when the rule begins
    assert outcome.size_at(599) >= 8
