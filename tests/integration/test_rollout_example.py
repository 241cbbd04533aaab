"""The rollout example, as docs/platform.md tells it: a canary that is promoted, one that is rolled back, and a bandit."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_fleet import FleetFactory, RunningFleet, until

from penstock.client.fleet_status import Status

EXAMPLE = Path(__file__).parents[2] / "examples" / "rollout"
ONE, TWO = str(EXAMPLE / "models" / "1"), str(EXAMPLE / "models" / "2")
FAULTY = f"{EXAMPLE / 'faulty.py'}:digits"


@pytest.fixture(scope="module")
def platform(shared_fleet: FleetFactory) -> Iterator[RunningFleet]:
    """A platform with callers who know the right answers."""
    running = shared_fleet()
    running.fleet.deploy("digits", ONE)
    running.fleet.wait("digits")
    command = [sys.executable, str(EXAMPLE / "ask.py"), "--url", running.http, "--rate", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as callers:
        assert callers.stdout is not None
        assert re.match(r" +1 s   1: \d+ answers, \d+% right", callers.stdout.readline())
        yield running
        callers.terminate()


def reached(running: RunningFleet, what: str, within_s: float, *, share: float, of: int) -> Status:
    """The deployment, once the revision has at least this share."""

    def found() -> Status | None:
        status = running.fleet.status("digits")
        shares = {arm.revision: arm.weight for arm in status.arms}
        return status if shares.get(of, 0.0) >= share else None

    return until(found, what, within_s)


@pytest.mark.timeout(400)
def test_a_canary_is_promoted_another_rolled_back_and_a_bandit_finds_the_better_arm(platform: RunningFleet) -> None:
    fleet = platform.fleet
    # The busy machine of a test run makes some answers slow by chance, so latency does not guard here.
    options = {"step_s": 2.0, "step_requests": 30, "error_tolerance": 0.05, "latency_ratio": None}
    canary = {"policy": "canary", "options": options}
    fleet.deploy("digits", TWO, traffic=canary)
    reached(platform, "promotion of revision 2", 180, share=1.0, of=2)
    assert any("promoted after 4 steps" in event.message for event in fleet.status("digits").events)

    fleet.deploy("digits", FAULTY)
    failed = until(
        lambda: (one := fleet.status("digits").find(3)) is not None and one.phase == "failed" and one, "a rollback", 120
    )
    assert re.search(r"rolled back in step \d of 4 .*error rate .* breaks error_tolerance", failed.reason)
    assert reached(platform, "revision 2 with everything", 30, share=1.0, of=2).stable == 2

    fleet.deploy("digits", ONE, traffic="latest")
    reached(platform, "revision 1 with everything", 60, share=1.0, of=1)
    fleet.deploy("digits", TWO, traffic="thompson")
    status = reached(platform, "a bandit that prefers revision 2", 120, share=0.95, of=2)
    rewards = {arm.revision: arm.mean_reward for arm in status.arms}
    assert (rewards[2] or 0) > 0.85
