"""A decision whose arm has no replica: another revision answers, and nobody learns from that."""

from __future__ import annotations

from router_harness import Replica, post, replicas, rig, says

from penstock.fleet.feedback.token import sign
from penstock.fleet.router.decision import Decider
from penstock.fleet.routes import Arm, Endpoint, Table
from penstock.fleet.store.batch import Decision

SECRET = "31" * 32


class Kept:
    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    def decided(self, decision: Decision) -> None:
        self.decisions.append(decision)


def nobody(name: str) -> object:
    raise AssertionError("no contextual policy is asked")


async def test_the_answer_of_another_revision_carries_no_token_and_is_not_logged() -> None:
    async with replicas(Replica(says(b"one"), "a"), Replica(says(b"two"), "b")) as (one, two), rig() as router:
        kept = Kept()
        decider = router.hooks.decisions = Decider(kept, nobody, clock=lambda: 1000.0)  # type: ignore[arg-type]
        decider.table(Table(1, secret=SECRET))

        router.follow(Endpoint("fraud", (Arm(1, 1e-9, (one.upstream,)), Arm(2, 1.0, ())), 1, 7, logged=True))
        answer = await router.ask(post(b"{}"))
        assert (answer.status, answer.body, answer.headers["penstock-revision"]) == (200, b"one", "1")
        assert "penstock-decision" not in answer.headers
        assert kept.decisions == []

        router.follow(
            Endpoint("fraud", (Arm(1, 1e-9, (one.upstream,)), Arm(2, 1.0, (two.upstream,))), 1, 7, logged=True)
        )
        answer = await router.ask(post(b"{}"))
        assert answer.body == b"two"
        (logged,) = kept.decisions
        assert answer.headers["penstock-decision"] == sign(logged, SECRET)
        assert logged.revision == 2
