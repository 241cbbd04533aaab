"""The log of decisions, their rewards, and the statistics of every arm, which all routers add to.

Theory of operation. Routers do not share memory; what they share is this database, to which each adds differences:
`SET n = n + …`, never `SET n = …`. So counts add up over routers, processes and restarts, in whatever order their
batches come. A batch is one transaction. Rows are always taken in the order of their keys, so that two writers wait for
each other and never in a circle.

A reward counts once per decision: its row's key is the decision's id, and only the writer whose insert made the row
adds to the sums. Rewards outlive their decisions in the log, because a token carries all that counting needs; when the
oldest are deleted a horizon is written down, behind which no reward is taken any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Engine, Select, Table, and_, delete, event, or_, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from penstock.fleet.evidence.comparison import merge
from penstock.fleet.state import LATENCY_BOUNDS_S, ArmStatistics
from penstock.fleet.store.batch import Arm, Batch, Decision, LoggedDecision, Outcome, Reward
from penstock.fleet.store.engine import open_engine
from penstock.fleet.store.schema import (
    arm_latencies,
    arm_statistics,
    arm_sums,
    comparisons,
    decisions,
    reward_horizons,
    rewards,
    writers,
)

BUCKETS = len(LATENCY_BOUNDS_S) + 1
_COUNTS = ("requests", "errors", "rewards", "reward_sum", "reward_squares")
_KEY = ("deployment", "experiment", "revision")
# Both databases bound the parameters of one statement (SQLite 32,766, PostgreSQL 65,535); a decision has 7.
_ROWS_AT_ONCE = 2000
_PAGE = 1000
_AT_ONCE = 1000  # experiments that are read in one transaction; each is two parameters
_DELETED_AT_ONCE = 5000


class Decisions:
    """The store's part that routers write. Usable on any thread; each call is one transaction.

    All methods raise `sqlalchemy.exc.DBAPIError` where the database does not answer or stays locked.
    """

    def __init__(self, database: Engine | str) -> None:
        """`database` is an engine of `store.engine`, which stays the caller's, or a URL.

        Raises:
            InvalidInput: the URL is not one of SQLite or PostgreSQL, or nobody answers there.
        """
        self._own = isinstance(database, str)
        self._engine = open_engine(database) if isinstance(database, str) else database
        self._insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        if self._own and self._engine.dialect.name == "sqlite":
            # What a caller was told is kept also when the power fails: a sync of milliseconds per batch, not request.
            event.listen(self._engine, "connect", _sync_each_commit)
            self._engine.dispose()  # the connections that were made before

    def close(self) -> None:
        """Closes the connections of an engine that was made here."""
        if self._own:
            self._engine.dispose()

    def record(self, batch: Batch) -> list[Outcome]:
        """Writes a batch, and gives the outcome of each of its rewards, in their order."""
        with self._engine.begin() as connection:
            again = self._written(connection, batch)
            if not again:
                self._log(connection, batch.decisions)
                self._compare(connection, batch)
            outcomes = self._reward(connection, batch)
            counted = [reward for reward, outcome in zip(batch.rewards, outcomes, strict=True) if outcome.first]
            sums = _rewarded(counted)
            self._count(connection, sums if again else _added(batch.statistics, sums))
            self._add_contexts(connection, counted)
        return outcomes

    def arm_statistics(self, deployment: str, experiment: int) -> dict[int, ArmStatistics]:
        """The statistics of every arm of an experiment that has any, by revision."""
        return self.statistics({deployment: experiment}).get(deployment, {})

    def statistics(self, experiments: Mapping[str, int]) -> dict[str, dict[int, ArmStatistics]]:
        """As `arm_statistics`, of one experiment of each deployment, in a few statements however many there are."""
        found: dict[str, dict[int, ArmStatistics]] = {}
        pairs = list(experiments.items())
        for first in range(0, len(pairs), _AT_ONCE):
            with self._reading() as connection:
                self._add_statistics(connection, pairs[first : first + _AT_ONCE], found)
        return found

    def _add_statistics(
        self, connection: Connection, pairs: list[tuple[str, int]], found: dict[str, dict[int, ArmStatistics]]
    ) -> None:
        def wanted(table: Table) -> Select[Any]:
            return select(table).where(tuple_(table.c.deployment, table.c.experiment).in_(pairs))

        latencies: dict[tuple[str, int], list[int]] = {}
        for row in connection.execute(wanted(arm_latencies)):
            latencies.setdefault((row.deployment, row.revision), [0] * BUCKETS)[row.bucket] = row.requests
        sums = {(row.deployment, row.revision): row for row in connection.execute(wanted(arm_sums))}
        for row in connection.execute(wanted(arm_statistics)):
            own = sums.get((row.deployment, row.revision))
            found.setdefault(row.deployment, {})[row.revision] = ArmStatistics(
                latency=tuple(latencies.get((row.deployment, row.revision), ())),
                gram=() if own is None else tuple(_floats(own.gram)),
                moment=() if own is None else tuple(_floats(own.moment)),
                **{name: getattr(row, name) for name in _COUNTS},
            )

    def decisions(
        self, deployment: str, since: float = 0.0, limit: int | None = None, *, experiment: int | None = None
    ) -> Iterator[LoggedDecision]:
        """The log from `since` on, oldest first, each with its reward if one came; `limit` is the most of them.

        It is read page by page and holds no transaction in between.
        """
        after, last = since, ""
        while limit is None or limit > 0:
            page = _PAGE if limit is None else min(_PAGE, limit)
            query = (
                select(decisions, rewards.c.reward, rewards.c.received_at)
                .join(rewards, rewards.c.id == decisions.c.id, isouter=True)
                .where(decisions.c.deployment == deployment)
                .where(or_(decisions.c.at > after, and_(decisions.c.at == after, decisions.c.id > last)))
                .order_by(decisions.c.at, decisions.c.id)
                .limit(page)
            )
            if experiment is not None:
                query = query.where(decisions.c.experiment == experiment)
            with self._reading() as connection:
                rows = connection.execute(query).all()
            for row in rows:
                context = tuple(_floats(row.context)) if row.context else ()
                made = Decision(
                    row.id, row.deployment, row.experiment, row.revision, row.propensity, row.at, context
                )  # fmt: skip
                yield LoggedDecision(made, row.reward, row.received_at)
            if len(rows) < page:
                return
            after, last = rows[-1].at, rows[-1].id
            if limit is not None:
                limit -= len(rows)

    def comparisons(self, deployment: str, experiment: int) -> dict[int, str]:
        """The comparison of each shadow of an experiment, as a JSON document of `evidence.comparison`, by revision."""
        query = select(comparisons).filter_by(deployment=deployment, experiment=experiment)
        with self._reading() as connection:
            return {row.revision: row.document for row in connection.execute(query)}

    def prune(
        self, now: float, *, decisions_s: float = 14 * 86400.0, most_decisions: int = 1_000_000,
        rewards_s: float = 31 * 86400.0, most_rewards: int = 2_000_000,
    ) -> int:  # fmt: skip
        """Deletes what is older than its time or more than its number, per deployment, and says how many rows.

        `rewards_s` is at least what tokens are good for. Statistics stay: they are one row per arm.
        """
        gone = 0
        for deployment in self._deployments():
            with self._reading() as connection:
                oldest = _cut(connection, decisions, decisions.c.at, deployment, now - decisions_s, most_decisions)
                before = _cut(connection, rewards, rewards.c.decided_at, deployment, now - rewards_s, most_rewards)
            gone += self._delete(decisions, decisions.c.at, deployment, oldest)
            with self._engine.begin() as connection:
                statement = self._insert(reward_horizons).values(deployment=deployment, before=before)
                connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=["deployment"],
                        set_={"before": statement.excluded.before},
                        where=reward_horizons.c.before < statement.excluded.before,
                    )
                )
            # Only now: who wrote a reward under the old horizon has committed before this.
            gone += self._delete(rewards, rewards.c.decided_at, deployment, before)
        with self._engine.begin() as connection:
            # A writer that lives has written again long before.
            connection.execute(delete(writers).where(writers.c.at < now - decisions_s))
        return gone

    def forget(self, deployment: str) -> None:
        """Deletes all that is known of a deployment but its rewards' ids, so that old tokens count nowhere twice."""
        with self._engine.begin() as connection:
            for table in (decisions, arm_statistics, arm_latencies, arm_sums, comparisons):
                connection.execute(delete(table).where(table.c.deployment == deployment))

    def _delete(self, table: Table, time: ColumnElement[float], deployment: str, before: float) -> int:
        """Deletes the rows before a time, some at once: rewards that come in meanwhile wait for milliseconds."""
        old = select(table.c.id).where(table.c.deployment == deployment, time < before).limit(_DELETED_AT_ONCE)
        gone = 0
        while True:
            with self._engine.begin() as connection:
                n = connection.execute(delete(table).where(table.c.id.in_(old))).rowcount
            gone += n
            if n < _DELETED_AT_ONCE:
                return gone

    def _reading(self) -> Connection:
        return self._engine.connect().execution_options(penstock_reading=True)

    def _deployments(self) -> list[str]:
        with self._reading() as connection:
            names = set(connection.scalars(select(decisions.c.deployment).distinct()))
            names |= set(connection.scalars(select(rewards.c.deployment).distinct()))
        return sorted(names)

    def _written(self, connection: Connection, batch: Batch) -> bool:
        """Whether this batch was written before; notes down that it is now."""
        statement = self._insert(writers).values(writer=batch.writer, sequence=batch.sequence, at=batch.at)
        done = connection.execute(
            statement.on_conflict_do_update(
                index_elements=["writer"],
                set_={"sequence": statement.excluded.sequence, "at": statement.excluded.at},
                where=writers.c.sequence < statement.excluded.sequence,
            ).returning(writers.c.writer)
        )
        return done.first() is None

    def _log(self, connection: Connection, made: Sequence[Decision]) -> None:
        rows = [
            {
                "id": one.id, "deployment": one.deployment, "experiment": one.experiment, "revision": one.revision,
                "propensity": one.propensity, "at": one.at, "context": _bytes(one.context) if one.context else None,
            }
            for one in sorted(made, key=lambda one: one.id)
        ]  # fmt: skip
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            connection.execute(self._insert(decisions).on_conflict_do_nothing(), rows[start : start + _ROWS_AT_ONCE])

    def _reward(self, connection: Connection, batch: Batch) -> list[Outcome]:
        if not batch.rewards:
            return []
        names = sorted({reward.decision.deployment for reward in batch.rewards})
        # Held until the commit, so that nobody deletes rewards between this look and our insert.
        query = select(reward_horizons).where(reward_horizons.c.deployment.in_(names)).with_for_update(read=True)
        horizons = {row.deployment: row.before for row in connection.execute(query.order_by("deployment"))}
        wanted: dict[str, Reward] = {}
        for reward in batch.rewards:
            if reward.decision.at >= horizons.get(reward.decision.deployment, 0.0):
                wanted.setdefault(reward.decision.id, reward)
        inserted: set[str] = set()
        known: dict[str, float] = {}
        ordered = sorted(wanted)
        for start in range(0, len(ordered), _ROWS_AT_ONCE):
            ids = ordered[start : start + _ROWS_AT_ONCE]
            rows = [
                {
                    "id": one, "deployment": wanted[one].decision.deployment, "reward": wanted[one].value,
                    "decided_at": wanted[one].decision.at, "received_at": batch.at,
                }
                for one in ids
            ]  # fmt: skip
            new = connection.scalars(self._insert(rewards).on_conflict_do_nothing().returning(rewards.c.id), rows)
            inserted.update(new)
            known.update(
                dict(connection.execute(select(rewards.c.id, rewards.c.reward).where(rewards.c.id.in_(ids))).all())
            )
        outcomes = []
        for reward in batch.rewards:
            name = reward.decision.id
            outcomes.append(Outcome(known.get(name), name in inserted))
            inserted.discard(name)  # its second one in this batch is no first
        return outcomes

    def _count(self, connection: Connection, differences: Mapping[Arm, ArmStatistics]) -> None:
        counts, latencies = [], []
        for arm in sorted(differences):
            key = dict(zip(_KEY, arm, strict=True))
            counts.append({**key, **{name: getattr(differences[arm], name) for name in _COUNTS}})
            latencies += [
                {**key, "bucket": bucket, "requests": n} for bucket, n in enumerate(differences[arm].latency) if n
            ]
        self._add(connection, arm_statistics, _COUNTS, counts)
        self._add(connection, arm_latencies, ("requests",), latencies)

    def _add(
        self, connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Mapping[str, object]]
    ) -> None:
        if rows:
            statement = self._insert(table)
            added = {name: table.c[name] + statement.excluded[name] for name in columns}
            key = list(table.primary_key.columns)
            connection.execute(statement.on_conflict_do_update(index_elements=key, set_=added), list(rows))

    def _add_contexts(self, connection: Connection, counted: Iterable[Reward]) -> None:
        by_arm: dict[Arm, list[Reward]] = {}
        for reward in counted:
            if reward.decision.context:
                by_arm.setdefault(reward.decision.arm, []).append(reward)
        for arm in sorted(by_arm):
            key = dict(zip(_KEY, arm, strict=True))
            # The first to insert makes the row; who comes next waits for it here, and then adds to what it wrote.
            connection.execute(self._insert(arm_sums).on_conflict_do_nothing().values(**key, gram=b"", moment=b""))
            old = connection.execute(select(arm_sums).where(_is(arm_sums, arm)).with_for_update()).one()
            gram, moment = np.frombuffer(old.gram, "<f8"), np.frombuffer(old.moment, "<f8")
            for reward in by_arm[arm]:
                context = np.array(reward.decision.context, "<f8")
                if not moment.size:
                    gram, moment = np.zeros(context.size**2), np.zeros(context.size)
                if context.size == moment.size:  # another length: the policy's dimension was changed by hand
                    gram = gram + np.outer(context, context).ravel()
                    moment = moment + reward.value * context
            sums = {"gram": gram.astype("<f8").tobytes(), "moment": moment.astype("<f8").tobytes()}
            connection.execute(arm_sums.update().where(_is(arm_sums, arm)).values(**sums))

    def _compare(self, connection: Connection, batch: Batch) -> None:
        for arm in sorted(batch.comparisons):
            row = {**dict(zip(_KEY, arm, strict=True)), "document": "", "at": batch.at}
            connection.execute(self._insert(comparisons).on_conflict_do_nothing().values(**row))
            query = select(comparisons.c.document).where(_is(comparisons, arm)).with_for_update()
            document = merge(connection.execute(query).scalar_one(), batch.comparisons[arm])
            update = comparisons.update().where(_is(comparisons, arm))
            connection.execute(update.values(document=document, at=batch.at))


def _is(table: Table, arm: Arm) -> ColumnElement[bool]:
    """The condition that a row belongs to an arm."""
    return and_(*(table.c[name] == value for name, value in zip(_KEY, arm, strict=True)))


def _cut(
    connection: Connection, table: Table, time: ColumnElement[float], deployment: str, oldest: float, most: int
) -> float:
    """The time before which rows go: those older than `oldest`, and the oldest of more than `most`."""
    query = select(time).where(table.c.deployment == deployment).order_by(time.desc()).offset(most).limit(1)
    surplus = connection.execute(query).scalar()
    return oldest if surplus is None else max(oldest, math.nextafter(surplus, math.inf))


def _rewarded(counted: Iterable[Reward]) -> dict[Arm, ArmStatistics]:
    """What rewards add to the statistics of their arms."""
    values: dict[Arm, list[float]] = {}
    for reward in counted:
        values.setdefault(reward.decision.arm, []).append(reward.value)
    return {
        arm: ArmStatistics(rewards=len(of), reward_sum=math.fsum(of), reward_squares=math.fsum(one * one for one in of))
        for arm, of in values.items()
    }


def total(one: ArmStatistics, other: ArmStatistics) -> ArmStatistics:
    """The counts of both together; contextual sums are left out."""
    longer, shorter = sorted((one.latency, other.latency), key=len, reverse=True)
    latency = [*longer]
    for bucket, n in enumerate(shorter):
        latency[bucket] += n
    counts = {name: getattr(one, name) + getattr(other, name) for name in _COUNTS}
    return ArmStatistics(latency=tuple(latency), **counts)


def _added(one: Mapping[Arm, ArmStatistics], other: Mapping[Arm, ArmStatistics]) -> dict[Arm, ArmStatistics]:
    """The sum of the counts of both, arm by arm."""
    sums = dict(one)
    for arm, more in other.items():
        sums[arm] = total(sums[arm], more) if arm in sums else more
    return sums


def _bytes(numbers: Sequence[float]) -> bytes:
    return np.array(numbers, "<f8").tobytes()


def _floats(data: bytes) -> list[float]:
    numbers: list[float] = np.frombuffer(data, "<f8").tolist()
    return numbers


def _sync_each_commit(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous=FULL")
