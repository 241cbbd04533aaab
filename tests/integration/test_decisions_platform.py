"""Decisions, rewards, shadows and sticky callers through a whole platform: real routers, replicas and kills."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from running_fleet import FleetFactory, RunningFleet, until

pytestmark = pytest.mark.timeout(240)

MODEL = """
import os
import numpy as np
import penstock

SHIFT = float(os.environ.get("SHIFT", "0"))


@penstock.model(inputs={"x": "f4[n]"}, outputs={"scores": "f4[n, 2]"})
def half(x):
    return {"scores": np.stack([1 - x - SHIFT, x + SHIFT], axis=-1).astype("f4")}
"""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str:
        return self.headers["penstock-decision"]

    @property
    def revision(self) -> int:
        return int(self.headers["penstock-revision"])


def post(url: str, document: object, **headers: str) -> Answer:
    request = urllib.request.Request(url, json.dumps(document).encode(), dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Answer(answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, {key.lower(): value for key, value in error.headers.items()}, error.read())


def ask(running: RunningFleet, **headers: str) -> Answer:
    tensor = {"name": "x", "shape": [2], "datatype": "FP32", "data": [0.4, 0.6]}
    answer = post(f"{running.http}/v2/models/half/infer", {"inputs": [tensor]}, **headers)
    assert answer.status == 200, answer
    return answer


def reward(running: RunningFleet, document: object, name: str = "half") -> Answer:
    return post(f"{running.http}/v2/models/{name}/feedback", document)


@pytest.fixture(scope="module")
def running(shared_fleet: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> RunningFleet:
    """One deployment with two revisions that Thompson sampling chooses between; the tests below change that in turn."""
    file = tmp_path_factory.mktemp("model") / "half.py"
    file.write_text(MODEL)
    started = shared_fleet("--routers", "2")
    platform = started.fleet
    platform.deploy("half", f"{file}:half")
    platform.wait("half")
    platform.deploy("half", env={"SHIFT": "0.25"}, traffic={"policy": "thompson"})
    until(lambda: {ask(started).revision for _ in range(12)} == {1, 2}, "both arms")
    return started


def test_rewards_come_back_and_are_seen_everywhere(running: RunningFleet) -> None:
    answers = [ask(running) for _ in range(20)]
    assert len({answer.token for answer in answers}) == 20
    first = reward(running, {"token": answers[0].token, "reward": 0.3})
    assert first.status == 200, first
    assert json.loads(first.body)["revision"] == answers[0].revision
    again = reward(running, {"token": answers[0].token, "reward": 0.3})
    assert (again.status, again.body) == (200, first.body)
    assert reward(running, {"token": answers[0].token, "reward": 1}).status == 409
    many = [{"token": answer.token, "reward": 0.5} for answer in answers[1:]]
    assert reward(running, {"rewards": many}).status == 200
    assert reward(running, {"token": answers[1].token, "reward": "0.5"}).status == 400
    assert reward(running, {"token": answers[1].token, "reward": 0.5}, "nobody").status == 404
    cut = reward(running, {"token": answers[1].token[:-3], "reward": 0.5})
    assert (cut.status, cut.headers["penstock-error"]) == (400, "InvalidInput")

    ids = {json.loads(first.body)["decision"]}
    lines = until(
        lambda: [one for one in running.fleet.decisions("half") if one["reward"] is not None][19:] and
        list(running.fleet.decisions("half")),
        "twenty rewarded decisions",
    )  # fmt: skip
    assert [one["reward"] for one in lines if one["id"] in ids] == [0.3]
    assert all(0 < float(str(one["propensity"])) <= 1 for one in lines)

    def counted() -> bool:
        arms = running.fleet.status("half").arms
        return sum(arm.rewards for arm in arms) == 20 and sum(arm.requests for arm in arms) >= 20

    until(counted, "arms with twenty rewards")


def test_a_policy_is_judged_from_the_running_platform(running: RunningFleet) -> None:
    tokens = [ask(running).token for _ in range(30)]
    assert reward(running, {"rewards": [{"token": token, "reward": 1} for token in tokens]}).status == 200
    command = [
        sys.executable,
        "-m",
        "penstock.cli",
        "evaluate-policy",
        "half",
        "--fleet",
        str(running.state),
        "--json",
    ]
    done = until(
        lambda: subprocess.run(
            [*command, "--policy", "uniform", "--policy", "thompson"], capture_output=True, timeout=60
        ),
        "an evaluation",
    )
    found = json.loads(done.stdout)
    assert found["arms"] == [1, 2]
    assert found["used"] >= 30
    assert found["policies"]["uniform"]["snips"]["value"] == pytest.approx(1, abs=0.5)


def test_rewards_need_no_controller(running: RunningFleet) -> None:
    answer = ask(running)
    controller = running.pid("controller")
    os.kill(controller, signal.SIGSTOP)
    try:
        assert reward(running, {"token": answer.token, "reward": 0.125}).status == 200
    finally:
        os.kill(controller, signal.SIGCONT)
    until(
        lambda: any(one["reward"] == 0.125 for one in running.fleet.decisions("half")), "the reward in the log"
    )  # fmt: skip


def test_no_acknowledged_reward_is_lost_with_a_killed_router(
    running: RunningFleet, figure: Callable[..., None]
) -> None:
    acknowledged: dict[str, float] = {}

    def caller(number: int) -> None:
        for place in range(25):
            value = number + place / 32
            try:
                answer = ask(running)
                got = reward(running, {"token": answer.token, "reward": value})
            except (OSError, AssertionError, KeyError):
                continue  # the router was killed: nothing was acknowledged
            if got.status == 200:
                acknowledged[json.loads(got.body)["decision"]] = value

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        callers = [pool.submit(caller, number) for number in range(1, 7)]
        until(lambda: len(acknowledged) > 30, "rewards under way")
        running.kill("router-1")
        concurrent.futures.wait(callers)
    for one in callers:
        one.result()
    database = sqlite3.connect(f"file:{running.state / 'fleet.db'}?mode=ro", uri=True)
    kept = dict(database.execute("SELECT id, reward FROM rewards"))
    database.close()
    lost = {name: value for name, value in acknowledged.items() if kept.get(name) != value}
    figure("F26", "acknowledged rewards lost with a killed router of a platform", len(lost), "rewards", goal="0")
    assert lost == {}
    assert len(acknowledged) > 60


def test_a_contextual_bandit_finds_the_better_arm_of_each_context(running: RunningFleet) -> None:
    running.fleet.deploy("half", traffic={"policy": "linucb", "options": {"dimension": 2, "epsilon": 0.1}})
    contexts = {1: "1,0", 2: "0,1"}  # by the revision that is right for it

    def learn() -> None:
        rewards = []
        for right, context in contexts.items():
            for _ in range(15):
                answer = ask(running, **{"Penstock-Context": context})
                rewards.append({"token": answer.token, "reward": 0.9 if answer.revision == right else 0.1})
        assert reward(running, {"rewards": rewards}).status == 200

    def found() -> bool:
        learn()
        asked = [(right, ask(running, **{"Penstock-Context": contexts[right]}).revision) for right in (1, 2) * 20]
        return sum(right == revision for right, revision in asked) >= 32  # 38 are expected, at 5 % of exploration

    until(found, "the better arm of each context")
    tensor = {"name": "x", "shape": [2], "datatype": "FP32", "data": [0.4, 0.6]}
    refused = post(f"{running.http}/v2/models/half/infer", {"inputs": [tensor]}, **{"Penstock-Context": "1,2,3"})
    assert refused.status == 400
    assert b"3 numbers" in refused.body
    lines = [one for one in running.fleet.decisions("half") if one["context"] == [0.0, 1.0]]
    assert {round(float(str(one["propensity"])), 6) for one in lines} <= {0.05, 0.95}


def test_a_user_stays_on_one_arm_through_routers_and_their_deaths(running: RunningFleet) -> None:
    split = {"policy": "split", "options": {"weights": {"1": 50, "2": 50}}, "sticky": {"by": "cookie", "name": "user"}}
    running.fleet.deploy("half", traffic=split)

    def arms() -> dict[int, int]:
        return {user: ask(running, Cookie=f"a=1; user=u{user}").revision for user in range(40)}

    until(lambda: arms() == arms(), "callers that stay")
    before = arms()
    assert set(Counter(before.values())) == {1, 2}
    assert arms() == before
    running.kill("router-2")
    assert until(arms, "answers") == before


def test_a_shadow_is_compared_and_never_seen(running: RunningFleet) -> None:
    platform = running.fleet
    alone = {"policy": "split", "options": {"weights": {"1": 100, "2": 0}}, "shadow": {"revision": 2}}
    platform.deploy("half", traffic=alone)
    until(lambda: {ask(running).revision for _ in range(12)} == {1}, "one arm")

    def told() -> dict[str, object] | None:
        for _ in range(5):
            assert ask(running).revision == 1
        report = platform.comparison("half")
        found = report["comparisons"]
        assert isinstance(found, list)
        return found[0] if found and found[0]["outputs"]["compared"] >= 20 else None

    report = until(told, "a comparison")
    outputs = report["outputs"]
    assert isinstance(outputs, dict)
    assert outputs["equal"] == 0
    assert outputs["max_abs_difference"] == pytest.approx(0.25, abs=1e-5)
    assert outputs["top_agreement"] == pytest.approx(0.5)  # 0.4 + 0.25 is another choice, 0.6 + 0.25 the same


def test_a_stopped_shadow_delays_nobody(running: RunningFleet, figure: Callable[..., None]) -> None:
    """Its replica hangs: answers go on, and copies stop once enough wait."""
    replicas = running.fleet.status("half").replicas
    (shadow,) = [one for one in replicas if one.revision == 2 and one.state == "ready"]

    def quickest(n: int) -> list[float]:
        took = []
        for _ in range(n):
            began = time.perf_counter()
            ask(running)
            took.append(time.perf_counter() - began)
        return sorted(took)

    before = quickest(60)
    assert shadow.pid is not None
    os.killpg(shadow.pid, signal.SIGSTOP)
    try:
        during = quickest(60)
    finally:
        os.killpg(shadow.pid, signal.SIGCONT)
    figure("P9d", "median added to answers by a shadow that hangs", (during[30] - before[30]) * 1e3, "ms")
    assert during[30] < before[30] + 0.05
    assert during[-1] < 5
