"""The decision log and the arm statistics in real databases, with several writers at once."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from penstock.fleet.evidence.comparison import Comparison, read
from penstock.fleet.state import ArmStatistics
from penstock.fleet.store import decisions as writing
from penstock.fleet.store.batch import Batch, Decision, Outcome, Reward
from penstock.fleet.store.decisions import BUCKETS, Decisions
from penstock.fleet.store.engine import open_engine

FAR = 1e9


def decision(number: int, at: float = 1000.0, *, revision: int = 1, context: tuple[float, ...] = ()) -> Decision:
    return Decision(f"{number:016x}", "fraud", 7, revision, 0.25, at, context)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fleet.db'}"
    return str(request.getfixturevalue("postgres")())


@pytest.fixture
def store(url: str) -> Decisions:
    return Decisions(url)


def test_statistics_add_up(store: Decisions) -> None:
    latency = [0] * BUCKETS
    latency[3], latency[BUCKETS - 1] = 4, 2
    for number in (1, 2, 3):
        counts = {("fraud", 7, 2): ArmStatistics(requests=6, errors=1, latency=tuple(latency))}
        store.record(Batch(f"w{number}", 1, 1.0, statistics=counts))
    found = store.arm_statistics("fraud", 7)
    assert found == {2: ArmStatistics(requests=18, errors=3, latency=tuple(3 * n for n in latency))}
    assert store.arm_statistics("fraud", 8) == {}


def test_statistics_of_many_deployments_are_those_of_each(store: Decisions) -> None:
    counts = {
        ("one", 1, 1): ArmStatistics(requests=3),
        ("one", 2, 1): ArmStatistics(requests=4),
        ("two", 2, 7): ArmStatistics(requests=5, latency=(1,) * BUCKETS),
    }
    store.record(Batch("a", 1, 5.0, statistics=counts))
    many = store.statistics({"one": 2, "two": 2, "none": 1, **{f"m{number}": 1 for number in range(1500)}})
    assert many == {"one": store.arm_statistics("one", 2), "two": store.arm_statistics("two", 2)}
    assert (many["one"][1].requests, many["two"][7].requests, len(many["two"][7].latency)) == (4, 5, BUCKETS)


def test_a_batch_that_is_sent_again_counts_once(store: Decisions) -> None:
    more = Comparison()
    more.pair((200, 200), (0.01, 0.02))
    batch = Batch(
        "w", 1, 1.0, (decision(1),), (Reward(decision(1), 0.1),), {("fraud", 7, 1): ArmStatistics(requests=5)},
        {("fraud", 7, 9): more.document()},
    )  # fmt: skip
    assert store.record(batch) == [Outcome(0.1, True)]
    assert store.record(batch) == [Outcome(0.1, False)]
    assert store.arm_statistics("fraud", 7)[1] == ArmStatistics(
        requests=5, rewards=1, reward_sum=0.1, reward_squares=0.1 * 0.1
    )
    assert len(list(store.decisions("fraud"))) == 1
    assert read(store.comparisons("fraud", 7)[9]).counts["compared"] == 1


def test_the_first_reward_stays_and_fractions_are_exact(store: Decisions) -> None:
    value = 0.1 + 0.2
    assert store.record(Batch("a", 1, 5.0, rewards=(Reward(decision(1), value),) * 2)) == [
        Outcome(value, True),
        Outcome(value, False),
    ]
    assert store.record(Batch("b", 1, 6.0, rewards=(Reward(decision(1), 1.0),))) == [Outcome(value, False)]
    statistics = store.arm_statistics("fraud", 7)[1]
    assert (statistics.rewards, statistics.reward_sum, statistics.reward_squares) == (1, value, value * value)


def test_a_late_reward_counts_into_its_own_experiment(store: Decisions) -> None:
    old = Decision("0" * 16, "fraud", 3, 1, 0.5, 10.0)
    store.record(
        Batch("a", 1, 9000.0, rewards=(Reward(old, 1.0),), statistics={("fraud", 7, 1): ArmStatistics(requests=1)})
    )
    assert store.arm_statistics("fraud", 3)[1].rewards == 1
    assert store.arm_statistics("fraud", 7)[1].rewards == 0


def test_contexts_of_rewarded_decisions_are_summed(store: Decisions) -> None:
    first, second = decision(1, context=(1.0, 2.0)), decision(2, context=(0.5, -1.0))
    store.record(Batch("a", 1, 5.0, rewards=(Reward(first, 1.0),)))
    store.record(Batch("b", 1, 5.0, rewards=(Reward(second, 0.5), Reward(first, 1.0))))
    statistics = store.arm_statistics("fraud", 7)[1]
    assert statistics.gram == (1.25, 1.5, 1.5, 5.0)
    assert statistics.moment == (1.25, 1.5)


def test_the_log_is_read_page_by_page_with_rewards(store: Decisions) -> None:
    made = [decision(n, at=float(n // 3), context=(float(n),)) for n in range(2500)]  # three at the same time
    store.record(Batch("a", 1, 5.0, tuple(reversed(made)), (Reward(made[7], 0.75),)))
    logged = list(store.decisions("fraud"))
    assert [one.decision for one in logged] == made
    assert [(one.decision, one.reward, one.rewarded_at) for one in logged if one.reward is not None] == [
        (made[7], 0.75, 5.0)
    ]
    assert [one.decision for one in store.decisions("fraud", since=1.0, limit=1100)] == made[3:1103]
    assert list(store.decisions("other")) == []


def test_pruning_keeps_the_newest_and_never_counts_a_forgotten_reward_twice(store: Decisions) -> None:
    made = [decision(n, at=1000.0 + n) for n in range(20)]
    store.record(Batch("a", 1, 5.0, tuple(made), tuple(Reward(one, 1.0) for one in made[:10])))
    assert store.prune(1005.0, decisions_s=0, most_decisions=100, rewards_s=FAR, most_rewards=4) == 5 + 6
    assert [one.decision for one in store.decisions("fraud")] == made[5:]
    store.prune(1005.0, decisions_s=FAR, most_decisions=3, rewards_s=FAR, most_rewards=4)
    assert [one.decision for one in store.decisions("fraud")] == made[17:]
    again = store.record(Batch("a", 2, 6.0, rewards=tuple(Reward(one, 1.0) for one in (made[0], made[9], made[19]))))
    assert again == [Outcome(None, False), Outcome(1.0, False), Outcome(1.0, True)]
    assert store.arm_statistics("fraud", 7)[1].rewards == 11


def test_much_is_pruned_in_small_transactions(store: Decisions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_DELETED_AT_ONCE", 7)
    made = [decision(n, at=1000.0 + n) for n in range(30)]
    store.record(Batch("a", 1, 5.0, tuple(made), tuple(Reward(one, 1.0) for one in made)))
    assert store.prune(1000.0, most_decisions=2, most_rewards=9) == 28 + 21
    assert [one.decision for one in store.decisions("fraud")] == made[28:]
    assert store.record(Batch("a", 2, 6.0, rewards=(Reward(made[20], 1.0),))) == [Outcome(None, False)]
    assert store.record(Batch("a", 3, 6.0, rewards=(Reward(made[21], 1.0),))) == [Outcome(1.0, False)]


def test_a_routers_sqlite_syncs_each_commit(tmp_path: Path) -> None:
    store = Decisions(f"sqlite:///{tmp_path / 'fleet.db'}")
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_writers_at_once_lose_nothing(url: str) -> None:
    """Each reward is sent by two writers, in opposite orders; every one counts once, and nobody waits in a circle."""
    writers, batches, size = 4, 4, 300

    def write(writer: int) -> int:
        store, first = Decisions(url), 0
        for number in range(batches):
            ids = [(number * size + place) * 2 + writer // 2 for place in range(size)]
            made = [decision(one, revision=1 + one % 3, context=(1.0, float(one % 2))) for one in ids]
            if writer % 2:
                made.reverse()
            counts = {("fraud", 7, revision): ArmStatistics(requests=1, latency=(0, 1)) for revision in (1, 2, 3)}
            done = store.record(
                Batch(f"w{writer}", number + 1, 5.0, tuple(made), tuple(Reward(one, 0.5) for one in made), counts)
            )
            first += sum(outcome.first for outcome in done)
        store.close()
        return first

    with ThreadPoolExecutor(writers) as pool:
        assert sum(pool.map(write, range(writers))) == 2 * batches * size
    found = Decisions(url).arm_statistics("fraud", 7)
    assert {one.requests for one in found.values()} == {writers * batches}
    assert {one.latency[1] for one in found.values()} == {writers * batches}
    assert sum(one.rewards for one in found.values()) == 2 * batches * size
    assert math.fsum(one.reward_sum for one in found.values()) == batches * size * 1.0
    assert sum(one.gram[0] for one in found.values()) == 2 * batches * size
    assert sum(one.moment[0] for one in found.values()) == batches * size * 1.0


_WRITER = """
import sys
from penstock.fleet.state import ArmStatistics
from penstock.fleet.store import decisions as writing
from penstock.fleet.store.batch import Batch
from penstock.fleet.store.decisions import Decisions

store = Decisions(sys.argv[1])
for number in range(1, 26):
    store.record(Batch(sys.argv[2], number, 1.0, statistics={("fraud", 7, 1): ArmStatistics(requests=2)}))
"""


def test_processes_share_one_database(url: str) -> None:
    started = [subprocess.Popen([sys.executable, "-c", _WRITER, url, f"w{n}"]) for n in range(3)]
    assert [one.wait(50) for one in started] == [0, 0, 0]
    assert Decisions(url).arm_statistics("fraud", 7)[1].requests == 3 * 25 * 2


def test_a_writer_waits_for_another_that_holds_the_file(tmp_path: Path) -> None:
    file = tmp_path / "fleet.db"
    store = Decisions(f"sqlite:///{file}")
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, other.execute, ("COMMIT",))
    timer.start()
    store.record(Batch("a", 1, 1.0, statistics={("fraud", 7, 1): ArmStatistics(requests=1)}))
    timer.join()
    assert store.arm_statistics("fraud", 7)[1].requests == 1


def test_a_database_that_went_away_is_an_error_and_changes_nothing(postgres: Callable[[], str]) -> None:
    url = postgres()
    engine = open_engine(url)
    store = Decisions(engine)
    batch = Batch("a", 1, 1.0, (decision(1),), statistics={("fraud", 7, 1): ArmStatistics(requests=1)})
    store.record(batch)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE arm_statistics RENAME TO elsewhere")
    with pytest.raises(Exception, match="arm_statistics"):
        store.record(Batch("a", 2, 1.0, (decision(2),), statistics={("fraud", 7, 1): ArmStatistics(requests=1)}))
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO arm_statistics")
    assert len(list(store.decisions("fraud"))) == 1
    engine.dispose()


def test_a_locked_file_is_an_error_that_passes(tmp_path: Path) -> None:
    file = tmp_path / "fleet.db"
    engine = open_engine(f"sqlite:///{file}")
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=100"))
    engine.dispose()  # connections that were made before
    store = Decisions(engine)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    batch = Batch("a", 1, 1.0, statistics={("fraud", 7, 1): ArmStatistics(requests=1)})
    with pytest.raises(OperationalError):
        store.record(batch)
    other.execute("ROLLBACK")
    store.record(batch)
    assert store.arm_statistics("fraud", 7)[1].requests == 1


def test_statistics_outlive_forgetting_only_as_rewards(store: Decisions) -> None:
    store.record(Batch("a", 1, 1.0, (decision(1),), (Reward(decision(1), 1.0),)))
    store.forget("fraud")
    assert store.arm_statistics("fraud", 7) == {}
    assert list(store.decisions("fraud")) == []
    assert store.record(Batch("a", 2, 1.0, rewards=(Reward(decision(1), 1.0),))) == [Outcome(1.0, False)]
