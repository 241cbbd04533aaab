"""Canaries and bandits on a whole platform: real replicas, a router, feedback over HTTP."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from running_fleet import FleetFactory, RunningFleet, until

from penstock.client.fleet_status import Status

pytestmark = pytest.mark.timeout(240)

MODEL = """
import os
import numpy as np
import penstock

FAILS = float(os.environ.get("FAILS", "0"))  # this share of callers; what is made up for the warm-up is not among them
ANSWER = float(os.environ.get("ANSWER", "0"))


@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def known(x):
    if ((x >= 100) & (x - 100 < 100 * FAILS)).any():
        raise RuntimeError("this caller is not served")
    return {"y": np.full_like(x, ANSWER)}
"""
FAST = {"steps": [0.2, 0.5], "step_s": 0.5, "step_requests": 20, "latency_ratio": None, "error_tolerance": 0.1}


class Caller:
    """One connection that asks again and again; each caller in turn has another number from 100 to 199."""

    def __init__(self, running: RunningFleet) -> None:
        address = urlsplit(running.http)
        self.connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        self.asked = 0
        self.seen: Counter[tuple[int, int]] = Counter()  # by status and revision

    def ask(self) -> tuple[int, int, str]:
        """Status, revision and decision token."""
        number = 100 + (self.asked * 37) % 100
        self.asked += 1
        body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [number]}]}
        self.connection.request("POST", "/v2/models/known/infer", json.dumps(body))
        answer = self.connection.getresponse()
        answer.read()
        revision = int(answer.getheader("penstock-revision") or 0)
        self.seen[answer.status, revision] += 1
        return answer.status, revision, answer.getheader("penstock-decision") or ""

    def reward(self, rewards: list[dict[str, object]]) -> int:
        self.connection.request("POST", "/endpoints/known/feedback", json.dumps({"rewards": rewards}))
        answer = self.connection.getresponse()
        answer.read()
        return answer.status


@contextmanager
def calling(running: RunningFleet) -> Iterator[Caller]:
    """Callers all the time, in a thread of their own."""
    caller, over = Caller(running), threading.Event()
    failures: list[BaseException] = []

    def call() -> None:
        try:
            while not over.wait(0.003):
                caller.ask()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield caller
    finally:
        over.set()
        thread.join()
    assert not failures


@pytest.fixture(scope="module")
def running(shared_fleet: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> RunningFleet:
    file = tmp_path_factory.mktemp("model") / "known.py"
    file.write_text(MODEL)
    started = shared_fleet()
    started.fleet.deploy("known", f"{file}:known", replicas="1..2")
    started.fleet.wait("known")
    return started


def settled(running: RunningFleet, stable: int) -> Status:
    """Once one arm alone is left."""

    def look() -> Status | None:
        status = running.fleet.status("known")
        return status if status.stable == stable and [arm.revision for arm in status.arms] == [stable] else None

    found = until(look, f"revision {stable} alone", within_s=120)
    assert found is not None
    return found


def test_a_bad_canary_is_rolled_back_and_a_good_one_is_promoted(running: RunningFleet) -> None:
    fleet = running.fleet
    with calling(running) as caller:
        fleet.deploy("known", env={"FAILS": "0.5"}, traffic={"policy": "canary", "options": FAST})
        until(lambda: caller.seen[500, 2] > 0, "failures of the canary")
        status = settled(running, 1)
        (bad,) = [one for one in status.revisions if one.number == 2]
        assert bad.phase == "failed"
        assert re.search(
            r"rolled back in step \d of 2 \(\d+ % to revision 2\): error rate [\d.]+ % of [\d,]+, stable 0 % of [\d,]+ "
            r"\(at most 10 points more\), in the last [\d.]+ m?s; breaks error_tolerance, evidence (over 10⁸|[\d.,]+) of 20",
            bad.reason,
        ), bad.reason
        # Nobody but callers of the canary noticed.
        assert {key for key in caller.seen if key[0] != 200} == {(500, 2)}

        fleet.deploy("known", env={"FAILS": "0", "ANSWER": "1"})
        status = settled(running, 3)
        reasons = [one.message for one in status.events if "promoted after 2 steps" in one.message]
        assert re.search(
            r"error rate 0 % of [\d,]+, stable 0 % of [\d,]+ .*; evidence (over 10⁸|[\d.,]+) of 22\.2", str(reasons)
        )
        assert {key for key in caller.seen if key[0] != 200} == {(500, 2)}
        assert caller.seen[200, 3] > 0


def test_a_bandit_finds_the_arm_that_earns_more(running: RunningFleet) -> None:
    fleet = running.fleet
    before = fleet.status("known").revision
    fleet.deploy("known", env={"ANSWER": "2"}, traffic={"policy": "thompson", "options": {"floor": 0.05}})
    better = fleet.status("known").revision
    caller = Caller(running)
    until(lambda: {caller.ask()[1] for _ in range(20)} == {before, better}, "both arms")

    def taught() -> bool:
        """A batch of requests with fractional rewards: 0.8 on average for the better arm, 0.3 for the other."""
        asked = [caller.ask() for _ in range(50)]
        rewards: list[dict[str, object]] = [
            {"token": token, "reward": (0.7 if revision == better else 0.2) + (at % 3) / 10}
            for at, (_, revision, token) in enumerate(asked)
        ]
        assert caller.reward(rewards) == 200
        weights = {arm.revision: arm.weight for arm in fleet.status("known").arms}
        return weights[better] == pytest.approx(0.95, abs=1e-3)

    until(taught, "nearly all requests to the better arm")
    means = {arm.revision: arm.mean_reward for arm in fleet.status("known").arms}
    assert means[better] == pytest.approx(0.8, abs=0.03)
    assert means[before] == pytest.approx(0.3, abs=0.06)
    fleet.promote("known", better)
    settled(running, better)
