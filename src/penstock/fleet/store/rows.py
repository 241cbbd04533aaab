"""Steps of the store's transactions: what each change does to the rows, given a connection."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, delete, insert, select, update

from penstock.core.errors import InvalidInput, NotFound
from penstock.core.nearest import nearest
from penstock.fleet import spec
from penstock.fleet.spec import Deployment, Run
from penstock.fleet.state import Phase
from penstock.fleet.store import schema
from penstock.fleet.store.records import (
    MEMBERS,
    Applied,
    Record,
    difference,
    policy_text,
    record_of,
    revision_of,
    run_text,
    text,
)

SCHEMA = 1
# Kept of each deployment; older events are deleted. A deployment that flaps writes some per second.
EVENTS_KEPT = 1000
# Older revisions can be deployed again, but not by their number.
REVISIONS_KEPT = 100
# Of each deployment, with what was counted in them. A rolling update of many replicas begins some, and flapping arms
# begin one each time.
EXPERIMENTS_KEPT = 1000
_EVENT_CHARACTERS = 4000
_STATISTICS = (schema.arm_statistics, schema.arm_latencies, schema.arm_sums, schema.comparisons)
# Policies with at most one revision beside the stable one: a newer candidate takes the place of the one before.
SINGLE = ("latest", "canary")


def own_fleet(connection: Connection) -> RowMapping:
    """The one row about this fleet; made when the database is new."""
    row = connection.execute(select(schema.fleet)).mappings().one_or_none()
    if row is None:
        values = {
            "only": 1, "id": secrets.token_hex(6), "secret": secrets.token_hex(32), "version": 1, "schema": SCHEMA,
            "created_at": time.time(),
        }  # fmt: skip
        connection.execute(insert(schema.fleet).values(**values))
        row = connection.execute(select(schema.fleet)).mappings().one()
    return row


def bump(connection: Connection) -> int:
    """The counter's next value."""
    connection.execute(update(schema.fleet).values(version=schema.fleet.c.version + 1))
    return int(connection.execute(select(schema.fleet.c.version)).scalar_one())


def row(connection: Connection, name: str) -> RowMapping | None:
    return connection.execute(select(schema.deployments).where(schema.deployments.c.name == name)).mappings().first()


def get(connection: Connection, name: str) -> Record:
    """Raises: NotFound."""
    found = row(connection, name)
    if found is None:
        known = connection.execute(select(schema.deployments.c.name)).scalars().all()
        raise NotFound(f"there is no deployment {name[:80]!r}{nearest(name, known)}")
    query = select_revisions().where(schema.revisions.c.deployment == name)
    revisions = tuple(revision_of(one) for one in connection.execute(query).mappings())
    running = schema.experiments
    experiment = connection.execute(
        select(running).where(running.c.deployment == name, running.c.ended_at.is_(None))
    ).mappings()
    return record_of(found, revisions, experiment.first())


def select_revisions() -> Select[Any]:
    """Revisions with their contents, oldest first."""
    table, contents = schema.revisions, schema.contents
    same = (table.c.deployment == contents.c.deployment) & (table.c.number == contents.c.revision)
    joined = table.outerjoin(contents, same)
    return select(table, contents.c.content).select_from(joined).order_by(table.c.deployment, table.c.number)


def pin(connection: Connection, name: str, number: int, content: Mapping[str, str]) -> None:
    """Keeps what a revision's first replica loaded; what is kept already stays."""
    table = schema.contents
    known = connection.execute(select(table.c.content).where(table.c.deployment == name, table.c.revision == number))
    if known.first() is None:
        connection.execute(insert(table).values(deployment=name, revision=number, content=text(dict(content))))
        bump(connection)


def usable(connection: Connection, name: str) -> Record:
    """Raises: NotFound. InvalidInput: it is being deleted."""
    record = get(connection, name)
    if record.state.deleting:
        raise InvalidInput(f"deployment {name} is being deleted")
    return record


def moved_on(connection: Connection, name: str, generation: int | None) -> bool:
    """Whether the deployment's wish is of another generation than that one, or gone."""
    found = row(connection, name)
    return generation is not None and (found is None or found["generation"] != generation)


def update_deployment(connection: Connection, name: str, **values: object) -> None:
    connection.execute(update(schema.deployments).where(schema.deployments.c.name == name).values(**values))
    bump(connection)


def create(connection: Connection, wish: Deployment, now: float) -> Applied:
    """A new deployment with its first revision. One replica starts even where none is the minimum: it shows whether
    the revision works."""
    connection.execute(
        insert(schema.deployments).values(
            name=wish.name, generation=1, document=text(spec.write(wish)), revision=1, next_revision=2, paused=False,
            deleting=False, switch_to=None, switch_when="all", size=max(1, wish.replicas.minimum),
            size_reason="the first replicas", size_memory="{}", created_at=now,
        )
    )  # fmt: skip
    add_revision(connection, wish.name, 1, wish.run, now)
    check_shadow(connection, wish, 1, now)
    event(connection, wish.name, "created", "", now)
    bump(connection)
    return Applied(wish.name, 1, 1, difference(None, wish))


def add_revision(connection: Connection, name: str, number: int, run: Run, now: float) -> None:
    values = {
        "deployment": name, "number": number, "run": run_text(run), "created_at": now, "phase": Phase.PENDING.value,
        "phase_at": now, "reason": "",
    }  # fmt: skip
    connection.execute(insert(schema.revisions).values(**values))


def wish_revision(connection: Connection, record: Record, wish: Deployment, now: float) -> int:
    """The number of the revision with the wish's run, made a member: a new one, or an earlier one that did not fail."""
    for revision in reversed(record.state.revisions):
        if revision.run == wish.run and revision.phase is not Phase.FAILED:
            want(connection, record, revision.number, now)
            number = revision.number
            break
    else:
        number = int(row_value(connection, record.name, "next_revision"))
        update_deployment(connection, record.name, next_revision=number + 1)
        add_revision(connection, record.name, number, wish.run, now)
        forget_revisions(connection, record.name, number - REVISIONS_KEPT)
    if wish.traffic.policy in SINGLE:
        shadow = wish.traffic.shadow.revision if wish.traffic.shadow else None
        for other in record.members:
            if other.number not in (number, record.stable, shadow):
                set_phase(connection, record.name, other.number, Phase.RETIRED, f"superseded by revision {number}", now)
    return number


def forget_revisions(connection: Connection, name: str, up_to: int) -> None:
    """Deletes old revisions that are no members."""
    table = schema.revisions
    gone = table.c.phase.not_in([phase.value for phase in MEMBERS])
    connection.execute(delete(table).where(table.c.deployment == name, table.c.number <= up_to, gone))
    left = select(table.c.number).where(table.c.deployment == name)
    contents = schema.contents
    connection.execute(delete(contents).where(contents.c.deployment == name, contents.c.revision.not_in(left)))


def check_shadow(connection: Connection, wish: Deployment, number: int, now: float) -> None:
    """Makes the shadow's revision a member. Raises: InvalidInput: there is none of that number, or it failed."""
    shadow = wish.traffic.shadow
    if shadow is None or shadow.revision == number:
        return
    record = get(connection, wish.name)
    revision = record.find(shadow.revision)
    if revision is None or revision.phase is Phase.FAILED:
        known = ", ".join(str(one.number) for one in record.state.revisions if one.phase is not Phase.FAILED)
        raise InvalidInput(f"traffic.shadow.revision is {shadow.revision}; there are {known}, and {number} is wished")
    want(connection, record, shadow.revision, now)


def retire_shadow(connection: Connection, record: Record, wish: Deployment, number: int, now: float) -> None:
    """Takes out what was the shadow and is no more: nobody said that it should serve. The wished one, `number`, goes on
    as any new revision, and so does the stable one."""
    before, after = record.state.wish.traffic.shadow, wish.traffic.shadow
    if before is None or (after is not None and after.revision == before.revision):
        return
    if before.revision not in (number, record.stable) and before.revision in {one.number for one in record.members}:
        set_phase(connection, record.name, before.revision, Phase.RETIRED, "no longer the shadow", now)


def row_value(connection: Connection, name: str, column: str) -> int:
    table = schema.deployments
    return int(connection.execute(select(table.c[column]).where(table.c.name == name)).scalar_one())


def want(connection: Connection, record: Record, number: int, now: float) -> None:
    """Makes a retired revision a member again; of a member nothing changes."""
    revision = record.find(number)
    if revision is not None and revision.phase is Phase.RETIRED:
        set_phase(connection, record.name, number, Phase.STARTING, "", now)


def set_wish(connection: Connection, record: Record, wish: Deployment, number: int, **values: object) -> None:
    """The wish of the next generation. A switch that waits is given up when another revision is wished."""
    if number != record.revision:
        values = {"switch_to": None, "switch_when": "all", **values}
    update_deployment(
        connection, record.name, document=text(spec.write(wish)), revision=number,
        generation=record.state.generation + 1, **values,
    )  # fmt: skip


def set_phase(connection: Connection, name: str, number: int, phase: Phase, reason: str, now: float) -> None:
    table = schema.revisions
    connection.execute(
        update(table)
        .where(table.c.deployment == name, table.c.number == number)
        .values(phase=phase.value, phase_at=now, reason=reason[:_EVENT_CHARACTERS])
    )
    if phase not in MEMBERS:  # what went cannot become the only arm
        switching = schema.deployments
        connection.execute(
            update(switching).where(switching.c.name == name, switching.c.switch_to == number).values(switch_to=None)
        )
    bump(connection)


def begin(connection: Connection, record: Record, arms: Sequence[int], stable: int, now: float, why: str) -> int:
    """Ends the experiment that goes on, with `why` as its verdict, and begins one. Gives its id."""
    table = schema.experiments
    connection.execute(
        update(table)
        .where(table.c.deployment == record.name, table.c.ended_at.is_(None))
        .values(ended_at=now, verdict=text({"reason": why}))
    )
    done = connection.execute(
        insert(table).values(
            deployment=record.name, policy=policy_text(record.state.wish), arms=text(list(arms)), stable=stable,
            started_at=now, memory="{}", weights="{}", alarms="[]", explanation="", verdict="{}",
        )
    )  # fmt: skip
    bump(connection)
    key = done.inserted_primary_key
    assert key is not None
    if key[0] % 64 == 0:  # now and then is enough
        _forget_experiments(connection, record.name)
    return int(key[0])


def _forget_experiments(connection: Connection, name: str) -> None:
    """Deletes old experiments of a deployment, and what was counted in them."""
    table = schema.experiments
    last = select(table.c.id).where(table.c.deployment == name).order_by(table.c.id.desc())
    oldest = connection.execute(last.offset(EXPERIMENTS_KEPT).limit(1)).scalar()
    if oldest is None:
        return
    connection.execute(delete(table).where(table.c.deployment == name, table.c.id <= oldest))
    for counts in _STATISTICS:
        connection.execute(delete(counts).where(counts.c.deployment == name, counts.c.experiment <= oldest))


def forget_strangers(connection: Connection) -> None:
    """Deletes what routers counted for deployments that were deleted meanwhile: their last words come late."""
    known = select(schema.deployments.c.name)
    for counts in _STATISTICS:
        connection.execute(delete(counts).where(counts.c.deployment.not_in(known)))


def update_experiment(connection: Connection, experiment: int, **values: object) -> None:
    connection.execute(update(schema.experiments).where(schema.experiments.c.id == experiment).values(**values))


def stable_before(connection: Connection, record: Record) -> int:
    """The stable revision while another is a member beside it; else the latest that was stable before and did not
    fail. Raises: InvalidInput: there is none."""
    if record.stable is not None and (len(record.members) > 1 or record.revision != record.stable):
        return record.stable
    table = schema.experiments
    query = select(table.c.stable).where(table.c.deployment == record.name).order_by(table.c.id.desc())
    for number in connection.execute(query).scalars():
        revision = record.find(number)
        if number != record.stable and revision is not None and revision.phase is not Phase.FAILED:
            return int(number)
    raise InvalidInput(f"deployment {record.name} has no revision to go back to: none was stable before")


def event(connection: Connection, name: str, kind: str, message: str, now: float) -> None:
    values = {"deployment": name, "at": now, "kind": kind, "message": message[:_EVENT_CHARACTERS]}
    key = connection.execute(insert(schema.events).values(**values)).inserted_primary_key
    assert key is not None
    if key[0] % 64 == 0:  # now and then is enough
        table = schema.events
        last = select(table.c.id).where(table.c.deployment == name).order_by(table.c.id.desc())
        oldest = connection.execute(last.offset(EVENTS_KEPT).limit(1)).scalar()
        if oldest is not None:
            connection.execute(delete(table).where(table.c.deployment == name, table.c.id <= oldest))
