"""The recorder against databases that are slow, locked, late or gone, and rewards through a kill of their router."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from waiting import until

from penstock.core.errors import Internal, InvalidInput, Overloaded
from penstock.fleet.evidence.comparison import read
from penstock.fleet.feedback.token import sign
from penstock.fleet.router import mirror as mirroring
from penstock.fleet.router import recorder as recording
from penstock.fleet.router.hooks import Answer
from penstock.fleet.router.learning import Learning, learning
from penstock.fleet.router.mirror import Mirror
from penstock.fleet.router.recorder import Recorder
from penstock.fleet.routes import Arm, Endpoint, Table
from penstock.fleet.spec import Shadow
from penstock.fleet.state import ArmStatistics
from penstock.fleet.store.batch import Decision, Outcome, Reward
from penstock.fleet.store.decisions import Decisions
from penstock.fleet.store.engine import open_engine

pytestmark = pytest.mark.alone

SECRET = "42" * 32
ENDPOINT = Endpoint("fraud", (Arm(1, 0.5), Arm(2, 0.5)), 1, experiment=7, logged=True, shadow=Shadow(3))
TABLE = Table(1, (ENDPOINT,), secret=SECRET)


def decision(number: int) -> Decision:
    return Decision(f"{number:016x}", "fraud", 7, 1 + number % 2, 0.5, time.time())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fleet.db"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def parts(url: str) -> Iterator[Learning]:
    made = learning(url, "r1")
    made.table(TABLE)
    made.start()
    yield made
    made.close()


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Nobody else can write into the file."""
    other = sqlite3.connect(file, isolation_level=None, timeout=10)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def impatient(url: str) -> Decisions:
    """A store that does not wait for locks, so that the test need not."""
    engine = open_engine(url)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=20"))
    engine.dispose()
    return Decisions(engine)


def test_counts_and_decisions_arrive(parts: Learning, url: str) -> None:
    for number in (0.1, 0.9, 0.9):
        made = parts.decisions.decide(ENDPOINT, {}, b"", number)
        parts.decisions.answered(ENDPOINT, made, ENDPOINT.arms[made.arm].revision, 200, 0.01)
        parts.recorder.count(ENDPOINT, 2, ArmStatistics(requests=1, latency=(0, 2)))
    store = Decisions(url)
    until(lambda: 2 in store.arm_statistics("fraud", 7))
    assert store.arm_statistics("fraud", 7) == {2: ArmStatistics(requests=3, latency=(0, 6, *[0] * 53))}
    assert sorted(one.decision.revision for one in store.decisions("fraud")) == [1, 2, 2]


async def test_feedback_is_written_when_it_is_acknowledged(parts: Learning, url: str) -> None:
    body = json.dumps({"token": sign(decision(1), SECRET), "reward": 0.1}).encode()
    began = time.monotonic()
    status, answer = await parts.feedback.feedback("fraud", body)
    assert (status, json.loads(answer)["reward"]) == (200, 0.1)
    assert Decisions(url).arm_statistics("fraud", 7)[2].reward_sum == 0.1
    assert await parts.feedback.feedback("fraud", body) == (status, answer)
    assert Decisions(url).arm_statistics("fraud", 7)[2].rewards == 1
    assert time.monotonic() - began < 5


async def test_rewards_of_many_callers_are_written_together(parts: Learning, url: str) -> None:
    sent = [parts.recorder.reward((Reward(decision(n), 1.0),)) for n in range(400)]
    assert await asyncio.gather(*sent) == [[Outcome(1.0, True)]] * 400
    assert parts.recorder.figures().batches < 40
    assert sum(arm.rewards for arm in Decisions(url).arm_statistics("fraud", 7).values()) == 400


async def test_a_locked_database_delays_nobody_and_loses_nothing(url: str, file: Path) -> None:
    store = impatient(url)
    recorder = Recorder(lambda: store, "w", flush_s=0.02, reward_s=20.0)
    recorder.start()
    try:
        with locked(file):
            slowest = 0.0
            for n in range(500):
                began = time.perf_counter()
                recorder.decided(decision(n))
                recorder.count(ENDPOINT, 1, ArmStatistics(requests=1))
                slowest = max(slowest, time.perf_counter() - began)
            waiting = asyncio.ensure_future(recorder.reward((Reward(decision(1), 1.0),)))
            by = time.monotonic() + 20
            while recorder.figures().failures < 2:
                assert time.monotonic() < by
                await asyncio.sleep(0.01)
            assert not waiting.done(), "it is not in the store"
            assert "locked" in recorder.figures().problem
            assert recorder.figures().unwritten_s > 0
        assert await waiting == [Outcome(1.0, True)]
        assert slowest < 0.1
    finally:
        assert await asyncio.to_thread(recorder.close)
    assert len(list(store.decisions("fraud"))) == 500
    assert store.arm_statistics("fraud", 7)[1].requests == 500
    assert recorder.figures().problem == ""


async def test_a_reward_that_cannot_be_written_is_not_acknowledged(url: str, file: Path) -> None:
    store = impatient(url)
    recorder = Recorder(lambda: store, "w", flush_s=0.02, reward_s=0.3)
    recorder.start()
    try:
        with locked(file), pytest.raises(Overloaded, match="send it again"):
            await recorder.reward((Reward(decision(1), 1.0),))
        assert await recorder.reward((Reward(decision(1), 1.0),)) in ([[Outcome(1.0, True)], [Outcome(1.0, False)]])
    finally:
        await asyncio.to_thread(recorder.close)
    assert Decisions(url).arm_statistics("fraud", 7)[2].rewards == 1


async def test_what_waits_is_bounded(url: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_DECISIONS", 10)
    monkeypatch.setattr(recording, "MOST_REWARDS", 3)
    recorder = Recorder(lambda: Decisions(url), "w")  # not started: as if the database hung
    for n in range(25):
        recorder.decided(decision(n))
    assert recorder.figures().dropped_decisions == 15
    waiting = asyncio.ensure_future(recorder.reward([Reward(decision(n), 1.0) for n in range(3)]))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="too many"):
        await recorder.reward((Reward(decision(9), 1.0),))
    recorder.start()
    assert len(await waiting) == 3
    await asyncio.to_thread(recorder.close)
    assert len(list(Decisions(url).decisions("fraud"))) == 10


async def test_a_caller_that_leaves_makes_room(url: str) -> None:
    recorder = Recorder(lambda: Decisions(url), "w", reward_s=0.05)  # not started
    with pytest.raises(Overloaded):
        await recorder.reward((Reward(decision(1), 1.0),))
    assert recorder._inbox.rewards == 0
    assert recorder._inbox.asked == []


async def test_a_commit_without_an_answer_counts_once(url: str) -> None:
    """The store writes the batch, and its writer hears of a broken connection."""

    class Deaf(Decisions):
        deaf = 2

        def record(self, batch: recording.Batch) -> list[Outcome]:
            done = super().record(batch)
            if Deaf.deaf:
                Deaf.deaf -= 1
                raise OperationalError("COMMIT", None, Exception("server closed the connection"))
            return done

    recorder = Recorder(lambda: Deaf(url), "w", flush_s=0.01)
    recorder.start()
    recorder.count(ENDPOINT, 1, ArmStatistics(requests=5))
    assert await recorder.reward((Reward(decision(2), 0.5),)) == [Outcome(0.5, False)]
    await asyncio.to_thread(recorder.close)
    assert Decisions(url).arm_statistics("fraud", 7)[1] == ArmStatistics(
        requests=5, rewards=1, reward_sum=0.5, reward_squares=0.25
    )


async def test_what_the_store_can_never_take_does_not_take_the_rest_with_it(url: str) -> None:
    recorder = Recorder(lambda: Decisions(url), "w", flush_s=0.01)
    recorder.decided(replace(decision(1), propensity=None))  # type: ignore[arg-type]  # a defect somewhere
    recorder.count(ENDPOINT, 1, ArmStatistics(requests=5))
    recorder.start()
    assert await recorder.reward((Reward(decision(2), 0.5),)) == [Outcome(0.5, True)]
    with pytest.raises(Internal):
        await recorder.reward((Reward(replace(decision(4), at=None), 0.5),))  # type: ignore[arg-type]
    await asyncio.to_thread(recorder.close)
    assert recorder.figures().lost_batches >= 1
    assert Decisions(url).arm_statistics("fraud", 7)[1].requests == 5


async def test_a_database_may_come_later(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    url = f"sqlite:///{folder / 'fleet.db'}"
    recorder = Recorder(lambda: Decisions(url), "w", flush_s=0.01)
    recorder.start()
    recorder.count(ENDPOINT, 1, ArmStatistics(requests=1))
    by = time.monotonic() + 20
    while not recorder.figures().failures:
        assert time.monotonic() < by
        await asyncio.sleep(0.01)
    folder.mkdir()
    assert await recorder.reward((Reward(decision(2), 0.5),)) == [Outcome(0.5, True)]
    await asyncio.to_thread(recorder.close)
    assert Decisions(url).arm_statistics("fraud", 7)[1].requests == 1


def test_closing_tells_whether_all_was_written(url: str) -> None:
    def away() -> Decisions:
        raise InvalidInput("nobody answers there")

    for opened, written in ((away, False), (lambda: Decisions(url), True)):
        recorder = Recorder(opened, "one")
        recorder.start()
        recorder.decided(decision(1))
        assert recorder.close() is written


async def test_postgresql_that_restarts_is_waited_for(postgres: Callable[[], str]) -> None:
    url = postgres()
    recorder = Recorder(lambda: Decisions(url), "w", flush_s=0.01)
    recorder.start()
    assert await recorder.reward((Reward(decision(2), 0.5),)) == [Outcome(0.5, True)]
    admin = open_engine(url)
    with admin.connect() as connection:  # every connection but this one breaks
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    recorder.count(ENDPOINT, 1, ArmStatistics(requests=1))
    assert await recorder.reward((Reward(decision(4), 0.5),)) == [Outcome(0.5, True)]
    assert await asyncio.to_thread(recorder.close)
    assert Decisions(admin).arm_statistics("fraud", 7)[1].rewards == 2
    admin.dispose()


async def test_a_database_that_hangs_delays_nobody(postgres: Callable[[], str]) -> None:
    url = postgres()
    store = Decisions(url)
    recorder = Recorder(lambda: store, "w", flush_s=0.01, reward_s=2.0)
    recorder.start()
    assert await recorder.reward((Reward(decision(2), 0.5),)) == [Outcome(0.5, True)]
    admin = open_engine(url)
    with admin.connect() as connection:
        query = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
            " AND pid <> pg_backend_pid()"
        )
        backends = list(connection.exec_driver_sql(query).scalars())
    assert backends
    for pid in backends:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Overloaded, match="send it again"):
            await recorder.reward((Reward(decision(4), 0.5),))
        slowest = 0.0
        for n in range(100, 400):
            began = time.perf_counter()
            recorder.decided(decision(n))
            recorder.count(ENDPOINT, 1, ArmStatistics(requests=1))
            slowest = max(slowest, time.perf_counter() - began)
        assert slowest < 0.1
        assert recorder.figures().unwritten_s > 1.5
    finally:
        for pid in backends:
            os.kill(pid, signal.SIGCONT)
    # The one that was not acknowledged was under way, and counts once.
    until(lambda: recorder.figures().unwritten_s < 1.0)
    assert await recorder.reward((Reward(decision(4), 0.5),)) == [Outcome(0.5, False)]
    assert await asyncio.to_thread(recorder.close)
    found = Decisions(admin)
    assert len(list(found.decisions("fraud"))) == 300
    assert found.arm_statistics("fraud", 7)[1] == ArmStatistics(300, rewards=2, reward_sum=1.0, reward_squares=0.5)
    admin.dispose()


_ROUTER = """
import asyncio, itertools, json, sys, time
from penstock.fleet.feedback.token import sign
from penstock.fleet.router.learning import learning
from penstock.fleet.routes import Arm, Endpoint, Table
from penstock.fleet.store.batch import Decision

SECRET = "42" * 32
parts = learning(sys.argv[1], "r1")
parts.table(Table(1, (Endpoint("fraud", (Arm(1, 1.0),), 1, experiment=7, logged=True),), secret=SECRET))
parts.start()
numbers = itertools.count(int(sys.argv[2]))

async def caller():
    while True:
        number = next(numbers)
        made = Decision(f"{number:016x}", "fraud", 7, 1, 1.0, time.time())
        body = json.dumps({"token": sign(made, SECRET), "reward": number / 7})
        status, _ = await parts.feedback.feedback("fraud", body.encode())
        assert status == 200
        print(number, flush=True)  # the acknowledgement

async def main():
    await asyncio.gather(*(caller() for _ in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_reward_that_was_acknowledged_survives_kill_9(
    kind: str, url: str, request: pytest.FixtureRequest, figure: Callable[..., None]
) -> None:
    if kind == "postgresql":
        url = request.getfixturevalue("postgres")()
    acknowledged: set[int] = set()
    for life in range(2):
        router = subprocess.Popen(
            [sys.executable, "-c", _ROUTER, url, str(life * 1_000_000)], stdout=subprocess.PIPE, text=True
        )
        assert router.stdout is not None
        for _ in range(150):
            acknowledged.add(int(router.stdout.readline()))
        router.send_signal(signal.SIGKILL)
        # The last line may be half of a number.
        acknowledged.update(int(line) for line in router.stdout.read().split("\n")[:-1])
        router.wait()
        router.stdout.close()
    store = Decisions(url)
    with store._reading() as connection:
        rows = dict(connection.exec_driver_sql("SELECT id, reward FROM rewards").all())
    written = {int(name, 16): reward for name, reward in rows.items()}
    assert all(written.get(number) == number / 7 for number in acknowledged)
    statistics = store.arm_statistics("fraud", 7)[1]
    assert statistics.rewards == len(written)
    assert statistics.reward_sum == pytest.approx(sum(written.values()))
    lost = sum(number not in written for number in acknowledged)
    figure("F26", f"acknowledged rewards lost over 2 kills of a router ({kind})", lost, "rewards", goal="0")


def test_shadows_are_compared_and_reported(parts: Learning, url: str) -> None:
    for n in range(20):
        live = Answer(1, 200, json.dumps({"y": [0.5, 0.5 + n]}).encode(), 0.010)
        shadow = Answer(3, 200, json.dumps({"y": [0.5, 0.5 + n + (n == 7)]}).encode(), 0.020)
        assert parts.mirror.wants(ENDPOINT, 0.5)
        parts.mirror.compare(ENDPOINT, live, shadow)
    parts.mirror.compare(ENDPOINT, live, Answer(3, 0, error="refused"))
    parts.mirror.compare(ENDPOINT, live, Answer(3, 500, b"{}", 0.001))
    parts.mirror.compare(ENDPOINT, Answer(1, 0), shadow)
    store = Decisions(url)
    until(
        lambda: 3 in store.comparisons("fraud", 7) and read(store.comparisons("fraud", 7)[3]).counts["compared"] == 21
    )
    found = read(store.comparisons("fraud", 7)[3])
    assert (found.counts["outputs"], found.counts["equal"], found.counts["failed"]) == (20, 19, 1)
    assert found.statuses == {"200/200": 20, "200/500": 1}
    assert [one["what"] for one in found.examples] == ["other status", "other values"]
    assert found.examples[1]["max_abs"] == 1.0


def test_bodies_beyond_the_limit_are_counted_and_not_read() -> None:
    mirror, body = Mirror(), b"[" + b"1," * (mirroring.MOST_BYTES // 2) + b"1]"
    mirror.compare(ENDPOINT, Answer(1, 200, body, 0.01), Answer(3, 200, body, 0.01))
    mirror.start()
    mirror.close()
    found = read(mirror.take()[("fraud", 7, 3)])
    assert (found.counts["compared"], found.counts["outputs"], found.counts["too_large"]) == (1, 0, 1)
    assert found.examples == []


def test_a_mirror_that_is_behind_drops_and_counts() -> None:
    mirror = Mirror()  # not started: as if it were busy
    answer = Answer(1, 200, b"{}", 0.01)
    sent = sum(mirror.wants(ENDPOINT, 0.0) for _ in range(10))
    for _ in range(100):
        mirror.compare(ENDPOINT, answer, replace(answer, revision=3))
    assert (sent, mirror.wants(ENDPOINT, 0.0)) == (10, False)
    assert read(mirror.take()[("fraud", 7, 3)]).counts["behind"] == 36 + 1


def test_a_share_of_the_requests_is_copied() -> None:
    endpoint = Endpoint("fraud", (Arm(1, 1.0),), 1, shadow=Shadow(2, share=0.25))
    assert [Mirror().wants(endpoint, number) for number in (0.0, 0.24, 0.25, 0.9)] == [True, True, False, False]
    assert not Mirror().wants(Endpoint("fraud", (Arm(1, 1.0),), 1), 0.0)
