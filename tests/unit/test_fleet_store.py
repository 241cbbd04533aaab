"""The store, the same in SQLite and in a real PostgreSQL."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from penstock.core.errors import InvalidInput, NotFound
from penstock.fleet import spec
from penstock.fleet.spec import Deployment, Traffic
from penstock.fleet.state import ArmStatistics, Phase
from penstock.fleet.store import rows, schema, tenants
from penstock.fleet.store.batch import Batch
from penstock.fleet.store.decisions import Decisions
from penstock.fleet.store.engine import default_url, open_engine
from penstock.fleet.store.rows import EVENTS_KEPT, EXPERIMENTS_KEPT, REVISIONS_KEPT
from penstock.fleet.store.store import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return default_url(tmp_path)
    made: Callable[[], str] = request.getfixturevalue("postgres")
    return made()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store(url)
    yield opened
    opened.close()


def wish(name: str = "m", model: str = "/a", **more: object) -> Deployment:
    return spec.read(name, {"model": model, **more})


def serve(store: Store, number: int, now: float, name: str = "m") -> None:
    """What the loop does once a first revision, or a rollout, is ready."""
    if store.get(name).state.experiment is None:
        store.set_phase(name, number, Phase.READY, "", now)
        store.begin(name, (number,), number, now)
    else:
        store.switch(name, number, "", now)


def test_each_run_is_one_revision_and_numbers_are_not_used_again(store: Store) -> None:
    assert store.apply(wish(), 1.0).revision == 1
    serve(store, 1, 2.0)
    assert store.apply(wish(model="/b"), 3.0).revision == 2
    again = store.apply(wish(), 4.0)
    assert (again.revision, again.generation) == (1, 3)
    assert store.get("m").find(2).phase is Phase.RETIRED  # type: ignore[union-attr]
    assert store.apply(wish(model="/c"), 5.0).revision == 3


def test_same_wish_changes_nothing(store: Store) -> None:
    store.apply(wish(), 1.0)
    version = store.version()
    applied = store.apply(wish(), 2.0)
    assert applied.changed == ()
    assert applied.generation == 1
    assert store.version() == version


def test_change_names_what_differs(store: Store) -> None:
    store.apply(wish(), 1.0)
    applied = store.apply(wish(replicas="0..4", env={"A": "1"}), 2.0)
    assert {"key": "replicas.maximum", "before": 1, "after": 4} in applied.changed
    assert {"key": "env.A", "before": None, "after": "1"} in applied.changed
    assert applied.revision == 2  # the environment is part of what runs


def test_bounds_alone_make_no_revision(store: Store) -> None:
    store.apply(wish(), 1.0)
    assert store.apply(wish(replicas=3), 2.0).revision == 1


def test_rollback_goes_to_the_stable_revision_before(store: Store) -> None:
    for at, model in enumerate(("/a", "/b", "/c"), 1):
        serve(store, store.apply(wish(model=model), at).revision, at)
    applied = store.rollback("m", None, 10.0)
    assert applied.revision == 2
    assert {"key": "model", "before": "/c", "after": "/b"} in applied.changed
    record = store.get("m")
    assert (record.switch_to, record.switch_when) == (2, "any")
    assert record.find(2).phase is Phase.STARTING  # type: ignore[union-attr]


def test_rollback_during_an_update_goes_back_to_what_serves(store: Store) -> None:
    serve(store, store.apply(wish(), 1.0).revision, 1.0)
    store.apply(wish(model="/b"), 2.0)
    assert store.rollback("m", None, 3.0).revision == 1


def test_rollback_refuses_what_cannot_be(store: Store) -> None:
    with pytest.raises(NotFound, match="no deployment"):
        store.rollback("m", None, 1.0)
    serve(store, store.apply(wish(), 1.0).revision, 1.0)
    with pytest.raises(InvalidInput, match="none was stable before"):
        store.rollback("m", None, 2.0)
    store.apply(wish(model="/b"), 3.0)
    store.set_phase("m", 2, Phase.FAILED, "it burnt", 4.0)
    with pytest.raises(InvalidInput, match="it burnt"):
        store.rollback("m", 2, 5.0)
    with pytest.raises(NotFound, match="there are 1, 2"):
        store.rollback("m", 7, 5.0)


def test_switch_retires_the_others(store: Store) -> None:
    serve(store, store.apply(wish(), 1.0).revision, 1.0)
    store.apply(wish(model="/b"), 2.0)
    first = store.get("m").state.experiment
    store.switch("m", 2, "it is ready", 3.0)
    record = store.get("m")
    assert record.state.experiment is not None
    assert first is not None
    assert record.state.experiment.id > first.id
    assert record.state.experiment.arms == (2,)
    assert [one.phase for one in record.state.revisions] == [Phase.RETIRED, Phase.READY]


def test_failed_revision_gives_up_its_switch(store: Store) -> None:
    serve(store, store.apply(wish(), 1.0).revision, 1.0)
    store.apply(wish(model="/b"), 2.0)
    store.promote("m", 2, "by hand", 3.0)
    assert store.get("m").switch_to == 2
    store.set_phase("m", 2, Phase.FAILED, "no", 4.0)
    assert store.get("m").switch_to is None


def test_only_arm_is_not_retired(store: Store) -> None:
    serve(store, store.apply(wish(), 1.0).revision, 1.0)
    with pytest.raises(InvalidInput, match="only one"):
        store.retire("m", 1, False, "why", 2.0)


def test_what_a_policy_decided_comes_back(store: Store) -> None:
    serve(store, store.apply(wish(), 1.0).revision, 1.0)
    experiment = store.get("m").state.experiment
    assert experiment is not None
    store.decided(experiment.id, {"step": [1, 2.5]}, {1: 1.0}, ["alarm"], "why")
    found = store.get("m").state.experiment
    assert found is not None
    assert (found.memory, found.weights, found.alarms, found.explanation) == (
        {"step": [1, 2.5]}, {1: 1.0}, ("alarm",), "why",
    )  # fmt: skip


def test_everything_survives_a_new_process(url: str) -> None:
    store = Store(url)
    serve(store, store.apply(wish(traffic="thompson"), 1.0).revision, 1.0)
    store.sized("m", 3, "much to do", {"0:concurrency": {"panic": 1.0}}, 1, 2.0)
    store.placed("m-1-x", "m", 1, "here", {0: 0.5}, 2.0)
    before = (store.fleet_id, store.secret, store.load(), store.events("m"), store.placements())
    store.close()
    store = Store(url)
    assert (store.fleet_id, store.secret, store.load(), store.events("m"), store.placements()) == before
    assert store.bump() > before[2][0]
    store.close()


def test_version_only_grows_with_many_writers(store: Store) -> None:
    store.apply(wish(), 1.0)
    seen: list[list[int]] = [[] for _ in range(4)]

    def work(own: list[int]) -> None:
        for number in range(15):
            own.append(store.bump())
            store.event("m", "test", str(number), 1.0)

    threads = [threading.Thread(target=work, args=(own,)) for own in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [version for own in seen for version in own]
    assert len(set(everything)) == 60  # no two writers were given the same
    assert all(own == sorted(own) for own in seen)
    assert len(store.events("m", limit=1000)) == 61


def test_deleted_deployment_leaves_nothing_and_its_experiments_ids(store: Store) -> None:
    serve(store, store.apply(wish(), 1.0).revision, 1.0)
    first = store.get("m").state.experiment
    store.delete("m", 2.0)
    with pytest.raises(InvalidInput, match="being deleted"):
        store.apply(wish(), 3.0)
    store.remove("m")
    assert store.load()[1] == {}
    assert store.events("m") == ()
    store.apply(wish(), 4.0)
    serve(store, 1, 5.0)
    again = store.get("m").state.experiment
    assert first is not None
    assert again is not None
    assert again.id > first.id


def test_old_experiments_go_with_what_was_counted_in_them(store: Store) -> None:
    decisions = Decisions(store.engine)
    serve(store, store.apply(wish(), 1.0).revision, 1.0)
    (first,) = {one.state.experiment.id for one in store.load()[1].values() if one.state.experiment}
    counts = {("m", first, 1): ArmStatistics(requests=1), ("deleted", 1, 1): ArmStatistics(requests=1)}
    decisions.record(Batch("a", 1, 5.0, statistics=counts))
    with store.writing() as connection:  # many at once
        record = store.get("m")
        for number in range(EXPERIMENTS_KEPT + 130):
            newest = rows.begin(connection, record, (1,), 1, float(number), "again")
        kept = connection.execute(select(func.count()).select_from(schema.experiments)).scalar_one()
    assert EXPERIMENTS_KEPT <= kept <= EXPERIMENTS_KEPT + 64
    experiment = store.get("m").state.experiment
    assert experiment is not None and experiment.id == newest
    assert decisions.arm_statistics("m", first) == {}
    assert decisions.arm_statistics("deleted", 1) != {}
    store.sweep()
    assert decisions.arm_statistics("deleted", 1) == {}


def test_events_are_bounded_and_in_order(store: Store) -> None:
    store.apply(wish(), 1.0)
    with store.writing() as connection:  # many at once
        for number in range(EVENTS_KEPT + 200):
            rows.event(connection, "m", "test", str(number), float(number))
    events = store.events("m", after=1, limit=5000)
    assert EVENTS_KEPT <= len(events) <= EVENTS_KEPT + 64
    assert [one.id for one in events] == sorted(one.id for one in events)
    assert [one.message for one in store.events("m", limit=2)] == [str(EVENTS_KEPT + 198), str(EVENTS_KEPT + 199)]
    assert [one.message for one in store.last_events(1)["m"]] == [str(EVENTS_KEPT + 199)]
    assert store.events("m", after=events[-1].id) == ()


def test_old_revisions_are_forgotten(store: Store) -> None:
    for number in range(REVISIONS_KEPT + 5):
        store.apply(wish(model=f"/{number}"), float(number))
    numbers = [one.number for one in store.get("m").state.revisions]
    assert len(numbers) <= REVISIONS_KEPT + 1
    assert numbers[-1] == REVISIONS_KEPT + 5


def test_shadow_is_a_revision_there_is(store: Store) -> None:
    with pytest.raises(InvalidInput, match="shadow"):
        store.apply(wish(traffic={"shadow": {"revision": 5}}), 1.0)
    assert store.load()[1] == {}
    serve(store, store.apply(wish(), 1.0).revision, 1.0)
    applied = store.apply(wish(model="/b", traffic={"shadow": {"revision": 2}}), 2.0)
    assert applied.revision == 2


def test_old_revision_that_is_no_longer_the_shadow_gets_no_requests(store: Store) -> None:
    for model in ("/a", "/b"):
        serve(store, store.apply(wish(model=model, traffic="canary"), 1.0).revision, 1.0)
    shadowed = {"policy": "canary", "shadow": {"revision": 1}}
    store.apply(wish(model="/b", traffic=shadowed), 2.0)
    assert [one.number for one in store.get("m").members] == [1, 2]
    store.apply(wish(model="/b", traffic="canary"), 3.0)
    assert [one.number for one in store.get("m").members] == [2]
    store.apply(wish(model="/c", traffic={"policy": "canary", "shadow": {"revision": 3}}), 4.0)
    store.apply(wish(model="/c", traffic="canary"), 5.0)
    assert [one.number for one in store.get("m").members] == [2, 3], "the newest goes on as any new one"


def test_traffic_changes_without_a_revision(store: Store) -> None:
    store.apply(wish(), 1.0)
    applied = store.set_traffic("m", Traffic(policy="thompson"), 2.0)
    assert applied.revision == 1
    assert applied.changed == ({"key": "traffic.policy", "before": "latest", "after": "thompson"},)


def test_key_of_a_tenant_is_given_once_and_kept_as_a_digest(store: Store) -> None:
    key = tenants.put_tenant(
        store, "acme", {"rate": 5.0, "burst": 2, "quota": 3, "quota_period_s": 60.0, "weight": 1.0}
    )
    assert key is not None
    assert tenants.put_tenant(store, "acme", {"rate": None, "burst": 1}) is None
    (tenant,) = tenants.tenants(store)
    assert (tenant.rate, tenant.burst) == (None, 1)
    assert key not in repr(tenant)
    tenants.delete_tenant(store, "acme")
    assert tenants.tenants(store) == ()
    with pytest.raises(NotFound):
        tenants.delete_tenant(store, "acme")


def test_quota_is_used_up_by_all_routers_and_begins_anew(store: Store) -> None:
    tenants.put_tenant(store, "acme", {"burst": 1, "quota": 10, "quota_period_s": 60.0, "weight": 1.0})
    known = {one.name: one for one in tenants.tenants(store)}
    assert tenants.use_quotas(store, {"acme": 6}, known, 120.0) == {}
    assert tenants.use_quotas(store, {"acme": 4}, known, 130.0) == {"acme": 180.0}
    assert tenants.use_quotas(store, {}, known, 179.0) == {"acme": 180.0}
    assert tenants.use_quotas(store, {}, known, 180.0) == {}
    assert tenants.use_quotas(store, {"acme": 1}, known, 181.0) == {}


def test_file_of_the_database_is_its_owners(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Store(default_url(tmp_path)).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "fleet.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("bad", ["", "nonsense", "mysql://h/d", "sqlite://", "sqlite:///:memory:"])
def test_other_databases_are_refused(bad: str) -> None:
    with pytest.raises(InvalidInput):
        open_engine(bad)


def test_database_that_does_not_answer_is_said_without_its_password() -> None:
    with pytest.raises(InvalidInput, match="cannot use the database") as refused:
        open_engine("postgresql://me:hidden@127.0.0.1:1/x")
    assert "hidden" not in str(refused.value)


def test_postgresql_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InvalidInput, match=r"pip install 'penstock\[postgres\]'"):
        open_engine("postgresql://127.0.0.1:1/none")


def test_a_database_from_before_tokens_were_limited_opens_with_what_it_has(url: str) -> None:
    before = Store(url)
    before.apply(wish(), 1.0)
    for table in (schema.token_limits, schema.token_quotas):
        table.drop(before.engine)
    before.close()
    opened = Store(url)
    try:
        assert opened.get("m").name == "m"
        with opened.reading() as connection:
            for table in (schema.token_limits, schema.token_quotas):
                assert connection.execute(select(func.count()).select_from(table)).scalar_one() == 0
    finally:
        opened.close()
