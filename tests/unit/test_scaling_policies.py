"""Scaling policies one by one: Knative's numbers, wait, the clock on the wall, and the bounds around them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from scaling_simulator import EPOCH, samples_of

from penstock.core.errors import InvalidInput
from penstock.fleet import knative
from penstock.fleet.bounds import bounded, idle_s, largest
from penstock.fleet.policy_options import table
from penstock.fleet.scaling import Load, Size, concurrency, queue_wait, rps, schedule
from penstock.fleet.spec import Replicas
from penstock.fleet.state import LoadSample

KNATIVE = {"slack": 0, "noise": 0, "settle_s": 0}
DOCS = Path(__file__).parents[2] / "docs" / "scaling.md"


def sized(values, *, ready, wished=None, memory=None, plug=concurrency.plug, late=0.0, **options):
    samples = samples_of(values)
    load = Load(EPOCH + len(values) - 1 + late, samples, ready, ready if wished is None else wished, memory or {})
    return plug.size(plug.options({**KNATIVE, **options}), load)


# Expected numbers follow Knative's autoscaler_test.go and the formula of its documentation; target 10 is 7 a replica.
@pytest.mark.parametrize(
    ("values", "ready", "expected"),
    [
        ([0] * 60, 1, 0),
        ([7] * 60, 1, 1),
        ([7.01] * 60, 1, 2),  # the panic window needs twice what is ready, so this is a panic
        ([70] * 60, 10, 10),
        ([50] * 60, 10, 10),  # a scaler without history starts in panic: nothing shrinks
        ([0] * 54 + [70] * 6, 1, 10),  # stable 7, panic 70
        ([0] * 54 + [70] * 6, 6, 10),  # 10 is below twice 6, but without history it is in panic already
    ],
)
def test_concurrency_counts_as_knative(values, ready, expected):
    assert sized(values, ready=ready, target=10).replicas == expected


def test_below_the_panic_threshold_only_the_stable_window_counts():
    known = {"since": EPOCH}
    assert sized([0] * 54 + [70] * 6, ready=6, target=10, memory=known).replicas == 3  # one, but at most halved
    assert sized([0] * 54 + [70] * 6, ready=5, target=10, memory=known).replicas == 10


def test_default_targets_are_knatives():
    assert sized([70] * 60, ready=1).replicas == 1
    assert sized([70.1] * 60, ready=1).replicas == 2
    assert sized([140] * 60, ready=1, plug=rps.plug).replicas == 1
    assert sized([140.1] * 60, ready=1, plug=rps.plug).replicas == 2


def test_one_decision_at_most_halves_and_multiplies_by_a_thousand():
    calm = {"since": EPOCH}
    assert sized([0] * 60, ready=11, target=1, memory=calm).replicas == 5
    assert sized([10_000] * 60, ready=1, target=1).replicas == 1000
    assert sized([100] * 60, ready=2, target=1, max_up_rate=1.1).replicas == 3  # grows by one at least


def test_panic_lasts_for_a_stable_window_after_the_rush_and_shrinks_nothing():
    options = concurrency.plug.options({**KNATIVE, "target": 10})
    memory, sizes = {"since": EPOCH}, []
    values = [7.0] * 60 + [70.0] * 10 + [7.0] * 130
    for now in range(60, 200):
        load = Load(
            EPOCH + now, samples_of(values[: now + 1]), sizes[-1] if sizes else 1, sizes[-1] if sizes else 1, memory
        )
        size = concurrency.plug.size(options, load)
        memory = size.memory
        sizes.append(size.replicas)
    top = max(sizes)
    assert top == 10
    first, last = sizes.index(top), len(sizes) - 1 - sizes[::-1].index(top)
    assert all(size == top for size in sizes[first : last + 1]), "shrank in panic"
    assert 50 <= last - first <= 62  # since the last second that needed twice what was ready
    assert sizes[-1] == 1


def test_scale_down_delay_keeps_the_largest_size_of_it():
    options = concurrency.plug.options({**KNATIVE, "target": 10, "scale_down_delay_s": 30, "stable_window_s": 6})
    memory, size = {"since": EPOCH}, 4
    values = [28.0] * 20 + [7.0] * 100
    seen = []
    for now in range(10, 120):
        answer = concurrency.plug.size(options, Load(EPOCH + now, samples_of(values[: now + 1]), size, size, memory))
        memory, size = answer.memory, answer.replicas
        seen.append((now, size))
    assert max(now for now, size in seen if size == 4) in range(46, 55)  # 19 + the window + the delay
    assert seen[-1][1] == 1
    assert len(memory["delayed"]) <= 30


@pytest.mark.parametrize(
    ("times", "now", "expected"),
    [
        ([0, 1, 2, 3], 3, 4.0),  # a partial window is averaged over what there is
        ([0, 3], 3, 2.0),  # seconds that miss between count as 0
        ([0, 1], 3, 4.0),  # seconds that miss at the end do not
        ([0], 60, 0.0),  # nothing in a whole window
        ([0], 61, None),
        ([0, 100, 101], 101, 4.0),  # after a silence as long as the window, what was before is forgotten
        ([59, *range(60, 120)], 119, 4.0),
        ([], 3, None),
    ],
)
def test_window_average_of_missing_samples(times, now, expected):
    assert knative.window_average([(float(at), 4.0) for at in times], float(now), 60.0) == expected


def test_without_samples_what_there_is_stays():
    for plug in (concurrency.plug, rps.plug, queue_wait.plug):
        assert plug.size(plug.options({}), Load(EPOCH, [], 3, 3)).replicas == 3
    assert sized([7] * 10, ready=3, late=100.0).replicas == 3  # routers are silent for longer than the window


def test_a_size_that_was_too_small_is_not_tried_again_at_the_same_rate():
    plug, options = concurrency.plug, concurrency.plug.options({"target": 10, "noise": 0})
    busy = [LoadSample(EPOCH + at, 7.5, 50.0, 0.0) for at in range(60)]
    grown = plug.size(options, Load(EPOCH + 59, busy, 1, 1, {"since": EPOCH}))
    assert grown.replicas == 2
    for rate, replicas in ((50.0, 2), (46.0, 2), (40.0, 1)):  # two replicas answer faster, so fewer are in flight
        samples = [LoadSample(EPOCH + 200 + at, 5.0, rate, 0.0) for at in range(60)]
        assert plug.size(options, Load(EPOCH + 259, samples, 2, 2, grown.memory)).replicas == replicas
    much_later = [LoadSample(EPOCH + 3700 + at, 5.0, 50.0, 0.0) for at in range(60)]
    assert plug.size(options, Load(EPOCH + 3759, much_later, 2, 2, grown.memory)).replicas == 1


def waits(*values, ready=2, wished=None, memory=None, waiting=0, rate=20.0, **options):
    samples = [
        LoadSample(EPOCH + at, 2.0, rate, wait, waiting if at == len(values) - 1 else 0)
        for at, wait in enumerate(values)
    ]
    load = Load(EPOCH + len(values) - 0.5, samples, ready, ready if wished is None else wished, memory or {})
    return queue_wait.plug.size(queue_wait.plug.options(options), load)


def test_queue_wait_grows_by_a_factor_when_the_wait_is_too_long():
    assert waits(0.0, 0.3, 0.3, ready=6).replicas == 9
    assert waits(0.0, 0.3, 0.3, ready=1).replicas == 2
    assert waits(0.0, 0.0, 0.3, ready=6).replicas == 6  # one bad second is none
    assert waits(*[0.15, 0.0] * 5, ready=6).replicas == 9  # half of ten seconds above the goal
    assert waits(*[0.05] * 10, ready=6).replicas == 6


def test_queue_wait_waits_for_what_it_asked_for():
    first = waits(0.3, 0.3, ready=2)
    assert first.replicas == 3
    assert waits(0.3, 0.3, 0.3, ready=2, wished=3, memory=first.memory).replicas == 3
    late = waits(*[0.3] * 30, ready=2, wished=3, memory=first.memory)  # after settle_s, but one is not ready yet
    assert late.replicas == 3
    assert waits(*[0.3] * 30, ready=3, wished=3, memory=first.memory).replicas == 4


def test_queue_wait_shrinks_slowly_and_not_below_what_was_learned():
    memory = {"calm_since": EPOCH}
    assert waits(*[0.0] * 59, ready=20, memory=memory).replicas == 20
    assert waits(*[0.0] * 61, ready=20, memory=memory).replicas == 18
    learned = {"calm_since": EPOCH, "limit": 2.5, "learned_at": EPOCH}
    assert waits(*[0.0] * 61, ready=11, memory=learned).replicas == 10  # 20 per s, each trusted with 2
    assert waits(*[0.0] * 61, ready=10, memory=learned).replicas == 10
    assert waits(*[0.0] * 61, ready=10, memory={**learned, "learned_at": EPOCH - 3600}).replicas == 9


def test_queue_wait_from_zero_and_to_zero():
    assert waits(0.0, ready=0, waiting=3).replicas == 1
    assert waits(0.0, ready=0, rate=0.0).replicas == 1  # something is in flight
    idle = [LoadSample(EPOCH + at, 0.0, 0.0, 0.0) for at in range(70)]
    size = queue_wait.plug.size(queue_wait.plug.options({}), Load(EPOCH + 70, idle, 1, 1, {"calm_since": EPOCH}))
    assert size.replicas == 0


BERLIN = ZoneInfo("Europe/Berlin")


def at(*wall, fold=0):
    return datetime(*wall, tzinfo=BERLIN, fold=fold).timestamp()


def scheduled(now, *rules, prewarm_s=0, **options):
    plug = schedule.plug
    options = plug.options({"rules": list(rules), "timezone": "Europe/Berlin", "prewarm_s": prewarm_s, **options})
    return plug.size(options, Load(now, [], 0, 0)).replicas


WORK = {"days": "mon-fri", "from": "08:00", "to": "18:00", "replicas": 3}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (at(2026, 3, 27, 7, 59), 0),
        (at(2026, 3, 27, 8, 0), 3),  # a Friday
        (at(2026, 3, 27, 17, 59), 3),
        (at(2026, 3, 27, 18, 0), 0),
        (at(2026, 3, 28, 12, 0), 0),  # a Saturday
        (at(2026, 3, 30, 8, 0), 3),  # the Monday after the clock was put on: still 8 on the wall
        (datetime(2026, 3, 27, 7, 0, tzinfo=UTC).timestamp(), 3),
        (datetime(2026, 3, 30, 6, 0, tzinfo=UTC).timestamp(), 3),
        (datetime(2026, 3, 30, 5, 59, tzinfo=UTC).timestamp(), 0),
    ],
)
def test_schedule_follows_the_clock_on_the_wall(now, expected):
    assert scheduled(now, WORK) == expected


def test_schedule_begins_earlier_by_the_time_to_warm_up():
    assert scheduled(at(2026, 3, 27, 7, 55), WORK, prewarm_s=600) == 3
    assert scheduled(at(2026, 3, 27, 7, 49), WORK, prewarm_s=600) == 0
    monday = {"days": "mon", "from": "00:05", "to": "06:00", "replicas": 2}
    assert scheduled(at(2026, 3, 29, 23, 58), monday, prewarm_s=600) == 2  # still Sunday


def test_schedule_over_midnight_belongs_to_the_day_it_begins():
    night = {"days": "fri", "from": "22:00", "to": "06:00", "replicas": 2}
    assert scheduled(at(2026, 3, 27, 23, 0), night) == 2
    assert scheduled(at(2026, 3, 28, 5, 59), night) == 2
    assert scheduled(at(2026, 3, 27, 5, 59), night) == 0
    whole = {"days": "sat", "from": "00:00", "to": "00:00", "replicas": 2}
    assert scheduled(at(2026, 3, 28, 0, 0), whole) == scheduled(at(2026, 3, 28, 23, 59), whole) == 2
    assert scheduled(at(2026, 3, 29, 0, 0), whole) == 0


def test_schedule_is_never_shorter_than_written_when_clocks_change():
    hour = {"from": "02:15", "to": "02:45", "replicas": 1}
    # 2026-10-25: 02:00 to 03:00 happens twice; the rule holds from the first 02:15 to the second 02:45, without a gap.
    moments = [at(2026, 10, 25, 2, 15) + 60 * minute for minute in range(90)]
    assert {scheduled(now, hour) for now in moments} == {1}
    assert scheduled(moments[-1] + 60, hour) == 0
    # 2026-03-29: 02:00 to 03:00 does not happen; whoever asked for that half hour gets at least as much around it.
    day = [datetime(2026, 3, 29, 0, 0, tzinfo=UTC).timestamp() + 60 * minute for minute in range(180)]
    assert sum(scheduled(now, hour) for now in day) >= 30


def test_the_largest_of_rules_that_hold_counts():
    rush = {"from": "12:00", "to": "13:00", "replicas": 9}
    assert scheduled(at(2026, 3, 27, 12, 30), WORK, rush) == 9
    assert scheduled(at(2026, 3, 28, 20, 0), WORK, rush, otherwise=1) == 1


@pytest.mark.parametrize(
    ("plug", "given", "said"),
    [
        (concurrency.plug, {"tarket": 3}, "did you mean 'target'"),
        (concurrency.plug, {"target": 0}, "at least 0.01"),
        (concurrency.plug, {"target": "many"}, "write a number"),
        (queue_wait.plug, {"goal": 1}, "goal_s"),
        (schedule.plug, {}, "write at least one"),
        (schedule.plug, {"rules": [WORK], "timezone": "Europe/Berlim"}, "timezone"),
        (schedule.plug, {"rules": [WORK], "timezone": "../../etc/passwd"}, "timezone"),
        (schedule.plug, {"rules": [{**WORK, "day": "mon"}]}, "did you mean 'days'"),
        (schedule.plug, {"rules": [{**WORK, "days": "mon-fry"}]}, "range such as mon-fri"),
        (schedule.plug, {"rules": [{**WORK, "from": "8"}]}, "'00:00' to '23:59'"),
        (schedule.plug, {"rules": [{**WORK, "to": "24:00"}]}, "'00:00' to '23:59'"),
        (schedule.plug, {"rules": [{**WORK, "replicas": "3"}]}, "whole number"),
        (schedule.plug, {"rules": [WORK] * 101}, "at most 100"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(plug, given, said):
    with pytest.raises(InvalidInput, match="scaling") as refused:
        plug.options(given)
    assert said in str(refused.value)


def quiet(seconds, *, ready=1, wished=None, busy_at=None):
    samples = [LoadSample(EPOCH + at, 1.0 if at == busy_at else 0.0, 0.0, 0.0) for at in range(seconds)]
    return Load(EPOCH + seconds, samples, ready, ready if wished is None else wished)


def test_zero_comes_after_the_wait_only():
    bounds = Replicas(minimum=0, maximum=4, zero_after_s=30)
    assert bounded(Size(0, ""), bounds, quiet(20)).replicas == 1
    assert bounded(Size(0, ""), bounds, quiet(31)).replicas == 0
    assert bounded(Size(0, ""), bounds, quiet(60, busy_at=40)).replicas == 1
    assert bounded(Size(0, ""), bounds, quiet(60, busy_at=59)).replicas == 1
    assert bounded(Size(0, ""), bounds, quiet(5, ready=0)).replicas == 0  # it is at zero already
    assert idle_s(quiet(60, busy_at=40)) == pytest.approx(19.0)


def test_without_samples_zero_is_not_decided():
    bounds = Replicas(minimum=0, maximum=4)
    assert bounded(Size(0, ""), bounds, Load(EPOCH, [], 1, 1)).replicas == 1
    assert bounded(Size(0, ""), bounds, Load(EPOCH, [], 0, 0)).replicas == 0


def test_a_waiting_request_at_zero_wakes_one_whatever_the_policy_says():
    waiting = Load(EPOCH + 1, [LoadSample(EPOCH, 0.0, 0.0, 0.0, waiting=1)], 0, 0)
    assert bounded(Size(0, ""), Replicas(minimum=0, maximum=4), waiting).replicas == 1


def test_bounds_hold_and_say_so():
    load = quiet(60, ready=3)
    low, high = (
        bounded(Size(0, "calm"), Replicas(minimum=2, maximum=4), load),
        bounded(Size(9, "rush"), Replicas(minimum=2, maximum=4), load),
    )
    assert (low.replicas, high.replicas) == (2, 4)
    assert "minimum 2" in low.reason and "maximum 4, wished 9" in high.reason


def test_of_several_policies_the_largest_answer_counts():
    size = largest({"concurrency": Size(2, "a", {"x": 1}), "schedule": Size(3, "b")})
    assert (size.replicas, size.reason, dict(size.memory)) == (3, "schedule: b", {})


def test_the_docs_list_every_option():
    text = DOCS.read_text()
    for kind in (knative.Options, rps.Options, queue_wait.Options, schedule.Options):
        for line in table(kind).splitlines():
            assert line in text, f"docs/scaling.md lacks: {line}"
