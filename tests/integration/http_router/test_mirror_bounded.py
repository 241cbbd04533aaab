"""Copies for a shadow that hangs do not gather in the router, and delay nobody."""

from __future__ import annotations

import asyncio

from router_harness import Replica, echo, echoes_after, post, replicas, rig, until

from penstock.fleet.evidence.comparison import read
from penstock.fleet.router.balancer import MOST_COPIES
from penstock.fleet.router.mirror import Mirror
from penstock.fleet.routes import Arm, Endpoint
from penstock.fleet.spec import Shadow


async def test_copies_for_a_shadow_that_hangs_are_bounded_and_counted() -> None:
    go = asyncio.Event()
    async with replicas(Replica(echo, "a"), Replica(echoes_after(go), "b")) as (live, shadow), rig() as router:
        mirror = router.hooks.mirror = Mirror()
        arms = (Arm(1, 1.0, (live.upstream,)), Arm(2, 0.0, (shadow.upstream,)))
        router.follow(Endpoint("fraud", arms, 1, experiment=7, shadow=Shadow(2)))
        caller = await router.caller()
        for number in range(MOST_COPIES + 20):
            caller.send(post(b"%d" % number))
            assert (await caller.answer()).body == b"%d" % number
        (hanging,) = router.balancer.services["fraud"].by_revision[2].upstreams
        assert hanging.in_flight == MOST_COPIES
        assert read(mirror.take()[("fraud", 7, 2)]).counts["behind"] == 20
        go.set()
        await until(lambda: hanging.in_flight == 0, "the copies are answered")
