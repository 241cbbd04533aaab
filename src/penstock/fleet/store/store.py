"""What lasts, as the controller reads and changes it. Every method is one transaction and may block: call it on a
thread. Every change that routers or watchers could see moves the fleet's one version counter, in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from penstock.core.errors import InvalidInput, NotFound
from penstock.fleet import spec
from penstock.fleet.spec import Deployment, Traffic
from penstock.fleet.state import Phase, Revision
from penstock.fleet.store import rows, schema
from penstock.fleet.store.engine import open_engine
from penstock.fleet.store.records import (
    MEMBERS,
    Applied,
    Event,
    Record,
    difference,
    record_of,
    revision_of,
    text,
)
from penstock.fleet.store.rows import select_revisions


class Store:
    """The fleet's store. The engine is its own; `close` ends it."""

    def __init__(self, url: str) -> None:
        """Opens the database, and makes the fleet in an empty one. Raises: InvalidInput, see `open_engine`."""
        self.engine: Engine = open_engine(url)
        self._postgresql = self.engine.dialect.name == "postgresql"
        with self.writing() as connection:
            row = rows.own_fleet(connection)
        if row["schema"] != rows.SCHEMA:
            self.engine.dispose()
            raise InvalidInput(
                f"the database was made by another penstock: its schema is {row['schema']}, not {rows.SCHEMA}"
            )
        self.fleet_id: str = row["id"]
        self.secret: str = row["secret"]

    def close(self) -> None:
        self.engine.dispose()

    # The fleet

    def sweep(self) -> None:
        """Deletes what no deployment has any more."""
        with self.writing() as connection:
            rows.forget_strangers(connection)

    def version(self) -> int:
        with self.reading() as connection:
            return int(connection.execute(select(schema.fleet.c.version)).scalar_one())

    def bump(self) -> int:
        """The counter's next value, for a change that is not in the store: of replicas, or of the route table."""
        with self.writing() as connection:
            return rows.bump(connection)

    def load(self) -> tuple[int, dict[str, Record]]:
        """The version, and all deployments by name."""
        with self.reading() as connection:
            version = int(connection.execute(select(schema.fleet.c.version)).scalar_one())
            rows = connection.execute(select(schema.deployments).order_by(schema.deployments.c.name)).mappings().all()
            revisions: dict[str, list[Revision]] = {}
            for row in connection.execute(select_revisions()).mappings():
                revisions.setdefault(row["deployment"], []).append(revision_of(row))
            running = select(schema.experiments).where(schema.experiments.c.ended_at.is_(None))
            experiments = {row["deployment"]: row for row in connection.execute(running).mappings()}
        return version, {
            row["name"]: record_of(row, tuple(revisions.get(row["name"], ())), experiments.get(row["name"]))
            for row in rows
        }

    def get(self, name: str) -> Record:
        """Raises: NotFound."""
        with self.reading() as connection:
            return rows.get(connection, name)

    # Wishes

    def apply(self, wish: Deployment, now: float) -> Applied:
        """Makes `wish` the wish for its name: a new deployment, or a new generation of one when something differs.

        A run that differs makes a revision; one that an earlier revision has makes that the wished one again, unless it
        failed. A wish for a run whose revision failed is a new try, with a new number.

        Raises: InvalidInput: `spec.check` says no, or the deployment is being deleted.
        """
        spec.check(wish)
        with self.writing() as connection:
            row = rows.row(connection, wish.name)
            if row is None:
                return rows.create(connection, wish, now)
            record = rows.get(connection, wish.name)
            if record.state.deleting:
                raise InvalidInput(f"deployment {wish.name} is being deleted; wait until it is gone, then deploy it")
            changed = difference(record.state.wish, wish)
            current = record.find(record.revision)
            failed = current is not None and current.phase is Phase.FAILED and current.run == wish.run
            if not changed and not failed:
                return Applied(wish.name, record.state.generation, record.revision, ())
            number = record.revision
            if failed or wish.run != record.state.wish.run:
                number = rows.wish_revision(connection, record, wish, now)
            if wish.traffic.shadow != record.state.wish.traffic.shadow:
                rows.check_shadow(connection, wish, number, now)
                rows.retire_shadow(connection, record, wish, number, now)
            rows.set_wish(connection, record, wish, number)
            if changed:
                keys = ", ".join(str(one["key"]) for one in changed[:8]) + (" …" if len(changed) > 8 else "")
                rows.event(connection, wish.name, "changed", f"generation {record.state.generation + 1}: {keys}", now)
            if number != record.revision:
                rows.event(connection, wish.name, "revision", f"revision {number} is wished", now)
            return Applied(wish.name, record.state.generation + 1, number, changed)

    def rollback(self, name: str, to: int | None, now: float) -> Applied:
        """Wishes the run of revision `to` again, and gives it all requests as soon as one replica of it is ready.

        Without `to`: back to the stable revision while another one comes up or shares its requests; else the one that
        was stable before.

        Raises: NotFound: no such deployment or revision. InvalidInput: that revision failed, or there is none before.
        """
        with self.writing() as connection:
            record = rows.usable(connection, name)
            number = rows.stable_before(connection, record) if to is None else to
            revision = record.find(number)
            if revision is None:
                numbers = ", ".join(str(one.number) for one in record.state.revisions)
                raise NotFound(f"deployment {name} has no revision {number}; there are {numbers}")
            if revision.phase is Phase.FAILED:
                raise InvalidInput(f"revision {number} failed: {revision.reason}; deploy it anew when that is repaired")
            wish = msgspec.structs.replace(record.state.wish, run=revision.run)
            changed = difference(record.state.wish, wish)
            if number == record.revision and number == record.stable and len(record.members) == 1:
                return Applied(name, record.state.generation, number, ())
            rows.want(connection, record, number, now)
            rows.set_wish(connection, record, wish, number, switch_to=number, switch_when="any", paused=False)
            rows.event(connection, name, "rollback", f"to revision {number}", now)
            return Applied(name, record.state.generation + 1, number, changed)

    def set_traffic(self, name: str, traffic: Traffic, now: float) -> Applied:
        """Another traffic policy, or other options, with the same run. Raises: NotFound, InvalidInput."""
        with self.reading() as connection:
            wish = rows.get(connection, name).state.wish
        return self.apply(msgspec.structs.replace(wish, traffic=traffic), now)

    def pause(self, name: str, paused: bool, now: float, weights: Mapping[int, float] | None = None) -> None:
        """While paused the weights stay as they are, or as given, and policies only watch.

        Raises: NotFound. InvalidInput: weights for other revisions than the arms."""
        with self.writing() as connection:
            record = rows.usable(connection, name)
            experiment = record.state.experiment
            if weights is not None:
                if experiment is None or set(weights) - set(experiment.arms):
                    arms = ", ".join(map(str, experiment.arms)) if experiment else "none"
                    raise InvalidInput(f"weights are for the arms of {name}: {arms}; got {sorted(weights)}")
                total = sum(weights.values())
                shares = {number: weights.get(number, 0.0) / total for number in experiment.arms}
                rows.update_experiment(connection, experiment.id, weights=text(shares))
            rows.update_deployment(connection, name, paused=paused)
            rows.event(
                connection, name, "paused" if paused else "resumed", "weights are set by hand" if paused else "", now
            )

    def want(self, name: str, number: int, now: float) -> None:
        """Makes a retired revision a member again. Raises: NotFound, InvalidInput: it failed."""
        with self.writing() as connection:
            record = rows.usable(connection, name)
            revision = record.find(number)
            if revision is None:
                raise NotFound(f"deployment {name} has no revision {number}")
            if revision.phase is Phase.FAILED:
                raise InvalidInput(f"revision {number} failed: {revision.reason}; deploy it anew")
            rows.want(connection, record, number, now)

    def promote(self, name: str, number: int, reason: str, now: float) -> Applied:
        """Makes an arm the only one, once as many of its replicas are ready as are wished. Raises: NotFound,
        InvalidInput: it is no member."""
        with self.writing() as connection:
            record = rows.usable(connection, name)
            revision = record.find(number)
            if revision is None or revision.phase not in MEMBERS:
                raise InvalidInput(f"revision {number} of {name} does not run; deploy it, or roll back to it")
            wish = msgspec.structs.replace(record.state.wish, run=revision.run)
            changed = difference(record.state.wish, wish)
            rows.set_wish(connection, record, wish, number, switch_to=number, switch_when="all")
            rows.event(connection, name, "promoting", f"revision {number}: {reason}", now)
            return Applied(name, record.state.generation + 1, number, changed)

    def retire(self, name: str, number: int, failed: bool, reason: str, now: float) -> None:
        """Takes a member out: FAILED with the reason when `failed`, else RETIRED. The wish goes back to the stable
        revision's run when it was the retired one's and it did not fail.

        Raises: NotFound. InvalidInput: it is no member, or the only arm."""
        with self.writing() as connection:
            record = rows.usable(connection, name)
            revision = record.find(number)
            experiment = record.state.experiment
            if revision is None or revision.phase not in MEMBERS:
                raise InvalidInput(f"revision {number} of {name} does not run")
            alive = {one.number for one in record.members if one.number != number}
            others = [arm for arm in (experiment.arms if experiment else ()) if arm in alive]
            if not others:
                raise InvalidInput(
                    f"revision {number} is the only one of {name} that serves; delete the deployment, or roll back"
                )
            phase = Phase.FAILED if failed else Phase.RETIRED
            rows.set_phase(connection, name, number, phase, reason, now)
            if experiment is not None and number in experiment.arms:  # at once, so that there is always a stable one
                rows.begin(connection, record, others, others[0], now, reason)
            if number == record.revision and not failed:
                keep = record.find(others[0])
                assert keep is not None
                wish = msgspec.structs.replace(record.state.wish, run=keep.run)
                rows.set_wish(connection, record, wish, keep.number)
            rows.event(connection, name, "failed" if failed else "retired", f"revision {number}: {reason}", now)

    def delete(self, name: str, now: float) -> None:
        """Raises: NotFound."""
        with self.writing() as connection:
            rows.get(connection, name)
            rows.update_deployment(connection, name, deleting=True, switch_to=None)
            rows.event(connection, name, "deleting", "", now)

    def remove(self, name: str) -> None:
        """Takes all of a deployment out, when it is deleted and nothing of it runs."""
        with self.writing() as connection:
            for table, column in (
                (schema.deployments, schema.deployments.c.name),
                (schema.revisions, schema.revisions.c.deployment),
                (schema.contents, schema.contents.c.deployment),
                (schema.experiments, schema.experiments.c.deployment),
                (schema.events, schema.events.c.deployment),
                (schema.placements, schema.placements.c.deployment),
            ):
                connection.execute(delete(table).where(column == name))
            rows.bump(connection)

    # What the loop finds out. It plans from what it read; `generation` is that of the wish it had read: when there is
    # another by now, nothing is done, and the loop plans anew.

    def set_phase(
        self, name: str, number: int, phase: Phase, reason: str, now: float, generation: int | None = None
    ) -> None:  # fmt: skip
        with self.writing() as connection:
            if rows.moved_on(connection, name, generation):
                return
            rows.set_phase(connection, name, number, phase, reason, now)
            kind = "failed" if phase is Phase.FAILED else "phase"
            detail = f": {reason}" if reason else ""
            rows.event(connection, name, kind, f"revision {number} is {phase.value}{detail}", now)

    def begin(
        self, name: str, arms: Sequence[int], stable: int, now: float, why: str = "", generation: int | None = None
    ) -> int | None:  # fmt: skip
        """Ends the experiment that goes on, and begins one with these arms. Gives its id."""
        with self.writing() as connection:
            if rows.moved_on(connection, name, generation):
                return None
            return rows.begin(connection, rows.get(connection, name), arms, stable, now, why)

    def switch(self, name: str, number: int, why: str, now: float, generation: int | None = None) -> None:
        """Gives everything to one revision, in one step: it is READY, the only arm, and the stable one; the other
        members are RETIRED, but for the shadow."""
        with self.writing() as connection:
            if rows.moved_on(connection, name, generation):
                return
            record = rows.get(connection, name)
            shadow = record.state.wish.traffic.shadow
            for other in record.members:
                if other.number != number and not (shadow and shadow.revision == other.number):
                    rows.set_phase(connection, name, other.number, Phase.RETIRED, f"replaced by revision {number}", now)
            rows.set_phase(connection, name, number, Phase.READY, "", now)
            rows.begin(connection, record, (number,), number, now, why)
            rows.update_deployment(connection, name, switch_to=None)
            rows.event(connection, name, "switched", f"revision {number} serves all{': ' if why else ''}{why}", now)

    def decided(
        self, experiment: int, memory: Mapping[str, object], weights: Mapping[int, float], alarms: Sequence[str],
        explanation: str,
    ) -> None:  # fmt: skip
        """Keeps what a policy decided. The counter stays: the route table moves it when weights changed."""
        with self.writing() as connection:
            rows.update_experiment(
                connection, experiment, memory=text(memory), weights=text(dict(weights)), alarms=text(list(alarms)),
                explanation=explanation,
            )  # fmt: skip

    def sized(self, name: str, size: int, reason: str, memory: Mapping[str, object], before: int, now: float) -> None:
        """Keeps how many replicas are wished; an event tells when that changed."""
        with self.writing() as connection:
            values = {"size": size, "size_reason": reason, "size_memory": text(memory)}
            connection.execute(update(schema.deployments).where(schema.deployments.c.name == name).values(**values))
            if size != before:
                rows.event(connection, name, "scaled", f"{before} to {size} replicas: {reason}", now)
                rows.bump(connection)

    def event(self, name: str, kind: str, message: str, now: float) -> None:
        with self.writing() as connection:
            rows.event(connection, name, kind, message, now)
            rows.bump(connection)

    def events(self, name: str, after: int = 0, limit: int = 100) -> tuple[Event, ...]:
        """The first `limit` events later than `after`; with `after` 0 the last ones. Oldest first."""
        table = schema.events
        query = select(table).where(table.c.deployment == name, table.c.id > after)
        query = query.order_by(table.c.id if after else table.c.id.desc()).limit(limit)
        with self.reading() as connection:
            rows = connection.execute(query).mappings().all()
        found = [Event(row["id"], row["deployment"], row["at"], row["kind"], row["message"]) for row in rows]
        return tuple(found if after else reversed(found))

    def last_events(self, each: int = 10) -> dict[str, tuple[Event, ...]]:
        """The last events of every deployment, oldest first."""
        table = schema.events
        rank = func.row_number().over(partition_by=table.c.deployment, order_by=table.c.id.desc()).label("rank")
        ranked = select(table, rank).subquery()
        found: dict[str, list[Event]] = {}
        with self.reading() as connection:
            for row in connection.execute(select(ranked).where(ranked.c.rank <= each).order_by(ranked.c.id)).mappings():
                event = Event(row["id"], row["deployment"], row["at"], row["kind"], row["message"])
                found.setdefault(event.deployment, []).append(event)
        return {name: tuple(events) for name, events in found.items()}

    # Replicas

    def placed(
        self, replica: str, name: str, revision: int, place: str, gpu_shares: Mapping[int, float], now: float
    ) -> None:
        with self.writing() as connection:
            values = {
                "replica": replica, "deployment": name, "revision": revision, "place": place,
                "gpu_shares": text(dict(gpu_shares)), "started_at": now,
            }  # fmt: skip
            connection.execute(insert(schema.placements).values(**values))

    def placements(self) -> dict[str, tuple[str, dict[int, float]]]:
        """Place and GPU shares by replica."""
        with self.reading() as connection:
            return {
                row["replica"]: (row["place"], {int(k): v for k, v in json.loads(row["gpu_shares"]).items()})
                for row in connection.execute(select(schema.placements)).mappings()
            }

    def pin(self, name: str, number: int, content: Mapping[str, str]) -> None:
        """Keeps what the first replica of a revision loaded; of a later one nothing changes."""
        with self.writing() as connection:
            rows.pin(connection, name, number, content)

    def unplaced(self, replicas: Sequence[str]) -> None:
        with self.writing() as connection:
            connection.execute(delete(schema.placements).where(schema.placements.c.replica.in_(list(replicas))))

    # Inside

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            connection = connection.execution_options(penstock_reading=True)
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            if self._postgresql:  # one writer at a time, as SQLite has it
                connection.execute(select(schema.fleet.c.only).with_for_update())
            yield connection
