"""Which replica a request goes to, and how it waits for one. The clock and its timers are the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from penstock.core.errors import DeadlineExceeded, NotFound, NotReady, Overloaded, PenstockError
from penstock.fleet.router.balancer import Balancer
from penstock.fleet.router.budget import RetryBudget
from penstock.fleet.router.lanes import Lane, Service, Upstream, Waiter
from penstock.fleet.router.table import CompiledTable
from penstock.fleet.routes import Arm, Endpoint, Table
from penstock.fleet.routes import Upstream as Address
from penstock.fleet.spec import Requests


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + delay_s, call))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due = [call for at, call in self.timers if at <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for call in due:
            call()


class Held:
    def __init__(self) -> None:
        self.upstream: Upstream | None = None
        self.error: PenstockError | None = None

    def granted(self, upstream: Upstream) -> None:
        assert self.upstream is None and self.error is None
        self.upstream = upstream

    def refused(self, error: PenstockError) -> None:
        assert self.upstream is None and self.error is None
        self.error = error


class Bench:
    def __init__(self, *arms: Arm, waking: bool = False, **requests: object) -> None:
        self.clock = Clock()
        self.woken: list[Service] = []
        self.gone: list[Upstream] = []
        self.balancer = Balancer(
            self.clock, self.clock.call_later, on_sleeping=self.woken.append, on_gone=self.gone.append
        )
        self.requests = Requests(**requests)  # type: ignore[arg-type]
        self.version = 0
        self.table(*arms, waking=waking)

    def table(self, *arms: Arm, waking: bool = False) -> None:
        self.version += 1
        stable = arms[0].revision if arms else 0
        endpoint = Endpoint("fraud", arms, stable, waking=waking, requests=self.requests)
        self.balancer.follow(CompiledTable(Table(self.version, (endpoint,))))

    @property
    def service(self) -> Service:
        return self.balancer.services["fraud"]

    def lane(self, index: int | None) -> Lane | None:
        return None if index is None else self.service.lanes[index]

    def acquire(self, index: int | None = 0, **more: object) -> Upstream | None:
        return self.balancer.acquire(self.service, self.lane(index), self.clock.now, **more)  # type: ignore[arg-type]

    def wait(self, index: int | None = 0, tenant: str = "") -> Held:
        held = Held()
        now = self.clock.now
        self.balancer.wait(self.service, Waiter(held, self.lane(index), None, tenant, 1.0, now + 60, now))
        return held

    def release(self, upstream: Upstream) -> None:
        self.balancer.release(upstream, self.clock.now)


def arm(revision: int, weight: float, *ids: str) -> Arm:
    return Arm(revision, weight, tuple(Address(id, f"127.0.0.1:{hash(id) % 60000 + 1}") for id in ids))


def test_the_less_busy_of_two_is_taken() -> None:
    bench = Bench(arm(1, 1.0, "a", "b"))
    taken = [bench.acquire() for _ in range(10)]
    assert sorted(upstream.id for upstream in taken if upstream) == ["a"] * 5 + ["b"] * 5


def test_many_replicas_stay_nearly_level() -> None:
    bench = Bench(arm(1, 1.0, *(f"r{number}" for number in range(20))))
    for _ in range(2000):
        assert bench.acquire() is not None
    counts = [upstream.in_flight for upstream in bench.service.lanes[0].upstreams]
    assert max(counts) - min(counts) <= 10


def test_a_replica_never_has_more_than_its_limit_and_the_rest_waits_in_order() -> None:
    bench = Bench(arm(1, 1.0, "a", "b"), max_in_flight=2, max_waiting=3)
    taken = [bench.acquire() for _ in range(4)]
    assert all(taken) and bench.acquire() is None
    held = [bench.wait() for _ in range(3)]
    with pytest.raises(Overloaded, match="3 requests wait"):
        bench.wait()
    assert bench.acquire() is None
    for number, upstream in enumerate(taken[:3]):
        assert upstream is not None
        bench.release(upstream)
        assert [one.upstream is not None for one in held] == [place <= number for place in range(3)]
    assert all(upstream.in_flight == 2 for upstream in bench.service.lanes[0].upstreams)


def test_who_arrives_does_not_overtake_who_waits() -> None:
    bench = Bench(arm(1, 1.0, "a"), max_in_flight=1)
    first = bench.acquire()
    assert first is not None
    held = bench.wait()
    first.in_flight -= 1  # a place is free, but not served yet
    assert bench.acquire() is None
    first.in_flight += 1
    bench.release(first)
    assert held.upstream is first


def test_at_zero_requests_wait_and_the_controller_is_told() -> None:
    bench = Bench(waking=True)
    held = [bench.wait(None) for _ in range(100)]
    assert len(bench.woken) == 100 and bench.service.waiting == 100
    bench.table(arm(1, 1.0, "a"))
    assert all(one.upstream is not None for one in held)
    assert bench.service.waiting == 0
    assert bench.service.lanes[0].meter.present == 100 and bench.service.nowhere.meter.present == 0


def test_without_a_replica_that_is_coming_there_is_no_wait() -> None:
    with pytest.raises(NotReady):
        Bench().wait(None)


def test_a_deleted_deployment_tells_who_waits() -> None:
    bench = Bench(waking=True)
    held = bench.wait(None)
    bench.balancer.follow(CompiledTable(Table(9)))
    assert isinstance(held.error, NotFound)


def test_cancelled_waiters_are_passed_over() -> None:
    bench = Bench(arm(1, 1.0, "a"), max_in_flight=1)
    first = bench.acquire()
    assert first is not None
    left, stays = Held(), Held()
    waiters = [Waiter(held, bench.lane(0), None, "", 1.0, 200.0, 100.0) for held in (left, stays)]
    for waiter in waiters:
        bench.balancer.wait(bench.service, waiter)
    bench.balancer.cancel(waiters[0])
    bench.balancer.cancel(waiters[0])
    bench.release(first)
    assert left.upstream is None and stays.upstream is first
    assert bench.service.lanes[0].meter.present == 1


def test_a_failing_replica_is_left_out_then_probed_by_one_request() -> None:
    bench = Bench(arm(1, 1.0, "a", "b"))
    bad, good = bench.service.lanes[0].upstreams
    bench.balancer.failed(bad)
    assert bench.balancer.failing == {"a"}
    assert all(bench.acquire() is good for _ in range(10))
    bench.clock.pass_time(0.1)
    probes = [bench.acquire() for _ in range(10)]
    assert probes.count(bad) == 1, "one request finds out"
    bench.balancer.succeeded(bad)
    assert bad in [bench.acquire() for _ in range(10)]


def test_a_replica_that_fails_again_stays_away_longer() -> None:
    bench = Bench(arm(1, 1.0, "a"))
    (only,) = bench.service.lanes[0].upstreams
    for pause in (0.05, 0.1, 0.2, 0.4):
        bench.balancer.failed(only)
        bench.clock.pass_time(pause * 0.75)
        assert bench.acquire() is None
        bench.clock.pass_time(pause * 0.5)
        probe = bench.acquire()
        assert probe is only
        bench.release(probe)


def test_requests_wait_while_all_are_ejected_and_go_on_with_the_probe() -> None:
    bench = Bench(arm(1, 1.0, "a"))
    (only,) = bench.service.lanes[0].upstreams
    bench.balancer.failed(only)
    held = [bench.wait(), bench.wait()]
    bench.clock.pass_time(0.1)
    assert held[0].upstream is only and held[1].upstream is None
    bench.balancer.succeeded(only)
    assert held[1].upstream is only


def test_an_arm_whose_replicas_are_away_is_stood_in_for() -> None:
    bench = Bench(arm(1, 0.5, "a"), arm(2, 0.5, "b"))
    one, two = (lane.upstreams[0] for lane in bench.service.lanes)
    bench.balancer.failed(two)
    assert bench.acquire(1) is one, "the stable arm first"
    bench.balancer.failed(one)
    held = bench.wait(0)
    bench.clock.pass_time(0.1)
    assert held.upstream is not None
    bench.table(arm(1, 1.0, "c"), Arm(2, 0.0))
    stand_in = bench.acquire(1)
    assert stand_in is not None and stand_in.id == "c"


def test_a_shadow_never_stands_in_for_others() -> None:
    bench = Bench(arm(1, 1.0, "a"), arm(2, 0.0, "b"))
    one, shadow = (lane.upstreams[0] for lane in bench.service.lanes)
    bench.balancer.failed(one)
    assert bench.acquire(0) is None
    held = bench.wait(0)
    bench.table(Arm(1, 1.0), arm(2, 0.0, "b"), waking=True)
    assert held.upstream is None and bench.service.nowhere.waiting == 1
    assert bench.balancer.acquire_in(bench.service.by_revision[2], bench.clock.now) is shadow


def test_who_waits_for_an_arm_that_goes_is_placed_anew() -> None:
    bench = Bench(arm(1, 0.5, "a"), arm(2, 0.5, "b"), max_in_flight=1)
    one, two = bench.acquire(0), bench.acquire(1)
    assert one is not None and two is not None
    held = bench.wait(1)
    bench.table(arm(1, 1.0, "a", "c"))
    assert held.upstream is not None and held.upstream.id == "c"
    assert bench.gone == [two]
    bench.release(two)
    assert two.in_flight == 0


def test_who_waits_while_arms_move_is_never_given_the_one_that_came_to_its_place() -> None:
    bench = Bench(arm(1, 0.5, "a"), arm(2, 0.5, "b"), max_in_flight=1)
    one, two = bench.acquire(0), bench.acquire(1)
    held = bench.wait(1)
    bench.table(arm(1, 1.0, "a"), arm(3, 0.0, "shadow"))
    assert held.upstream is None
    assert one is not None and two is not None
    bench.release(two)
    bench.release(one)
    assert held.upstream is one


def test_replicas_keep_their_state_over_tables() -> None:
    bench = Bench(arm(1, 1.0, "a"))
    upstream = bench.acquire()
    bench.table(arm(1, 0.5, "a"), arm(2, 0.5, "b"))
    assert bench.service.lanes[0].upstreams[0] is upstream and upstream is not None and upstream.in_flight == 1


def test_a_session_stays_with_its_replica_unless_that_is_full_or_away() -> None:
    bench = Bench(arm(1, 1.0, "a", "b", "c"), max_in_flight=1)
    home = bench.acquire(session=b"user")
    assert home is not None
    second = bench.acquire(session=b"user")
    assert second is not None and second is not home
    bench.release(home)
    bench.release(second)
    assert all(bench.release(one) is None for _ in range(20) if (one := bench.acquire(session=b"user")) is home)
    bench.balancer.failed(home)
    assert bench.acquire(session=b"user") is second


def test_the_meter_integrates_waiting_and_running() -> None:
    bench = Bench(arm(1, 1.0, "a"), max_in_flight=1)
    first = bench.acquire()
    assert first is not None
    bench.wait()
    bench.clock.pass_time(1.0)
    bench.release(first)  # the second runs now, after a wait of 1 s
    bench.clock.pass_time(1.0)
    concurrency, arrived, wait_s = bench.service.lanes[0].meter.read(bench.clock.now)
    assert (concurrency, arrived, wait_s) == (pytest.approx(1.5), 2, pytest.approx(1.0))


async def test_take_gives_places_back_that_nobody_uses() -> None:
    loop = asyncio.get_running_loop()
    balancer = Balancer(loop.time, loop.call_later)
    endpoint = Endpoint("fraud", (arm(1, 1.0, "a"),), 1, requests=Requests(max_in_flight=1))
    balancer.follow(CompiledTable(Table(1, (endpoint,))))
    service = balancer.services["fraud"]
    first = await balancer.take(service, None, deadline=loop.time() + 5)
    with pytest.raises(DeadlineExceeded):
        await balancer.take(service, None, deadline=loop.time() + 0.01)
    waiting = asyncio.create_task(balancer.take(service, None, deadline=loop.time() + 5))
    await asyncio.sleep(0)
    balancer.release(first, loop.time())  # granted, and in the same turn of the loop cancelled
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert first.in_flight == 0
    assert (await balancer.take(service, None, deadline=loop.time() + 5)) is first


def test_retries_are_a_share_of_the_requests() -> None:
    budget = RetryBudget(0.2)
    for _ in range(100):
        budget.request(50.3)
    assert sum(budget.retry(50.9) for _ in range(100)) == 20
    assert not budget.retry(59.9)
    assert budget.retry(60.1), "the window has moved on"
    assert not RetryBudget(0.0).retry(1.0)
    few = RetryBudget(0.2)
    few.request(1.0)
    assert few.retry(1.0), "a share of one request is none"
