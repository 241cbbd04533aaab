"""Deployments on a whole platform, as a user makes them: deployed, updated, rolled back, asleep, shadowed, applied."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from asked_platform import ONE, ROWS, TWO, ask, bad, callers, penstock, settled
from running_fleet import FleetFactory, RunningFleet, until

from penstock.core.errors import LoadError

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def platform(shared_fleet: FleetFactory) -> RunningFleet:
    return shared_fleet()


@pytest.fixture
def running(platform: RunningFleet) -> Iterator[RunningFleet]:
    """A platform of all these tests, which has no deployment before and after each."""
    yield platform
    for one in platform.fleet.deployments():
        platform.fleet.delete(one.name)
    until(lambda: not platform.fleet.deployments(), "platform without deployments")


def test_a_model_is_deployed_called_updated_and_rolled_back_without_an_error(running: RunningFleet) -> None:
    done = penstock(running, "deploy", "digits", ONE)
    assert "ready" in done.stdout
    status, headers, body = ask(running.http)
    assert status == 200, body
    assert headers["penstock-revision"] == "1"
    with callers(running.http) as outcomes:
        arm = until(lambda: next(one for one in running.fleet.status("digits").arms if one.requests > 50), "statistics")
        assert arm.p50_ms is not None
        assert arm.p50_ms > 0.1, "the first bucket: the clock is too coarse"
        penstock(running, "deploy", "digits", TWO)
        settled(running, "digits", 2)
        before = time.monotonic()
        penstock(running, "rollback", "digits")
        settled(running, "digits", 1)
        assert time.monotonic() - before < 20
    assert bad(outcomes) == {}
    assert outcomes["200 by 1"] > 0
    assert outcomes["200 by 2"] > 0


def test_an_update_that_fails_leaves_the_old_revision_serving(running: RunningFleet, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no model")
    platform = running.fleet
    platform.deploy("digits", ONE)
    platform.wait("digits")
    with callers(running.http) as outcomes:
        platform.deploy("digits", str(broken), rollout={"ready_timeout_s": 6.0})
        with pytest.raises(LoadError, match="revision 2 failed"):
            platform.wait("digits")
        count = sum(outcomes.values())
        until(lambda: sum(outcomes.values()) > count + 50, "more answers")
    assert set(outcomes) == {"200 by 1"}
    assert platform.status("digits").stable == 1


@pytest.mark.parametrize("strategy", ["blue-green", "rolling"])
def test_strategies_change_over_without_an_error(running: RunningFleet, strategy: str) -> None:
    platform = running.fleet
    platform.deploy("digits", ONE, replicas=2, rollout={"strategy": strategy})
    platform.wait("digits")
    with callers(running.http) as outcomes:
        platform.deploy("digits", TWO)
        settled(running, "digits", 2)
    assert bad(outcomes) == {}


def test_from_zero_requests_are_held_and_answered(running: RunningFleet, figure: object) -> None:
    platform = running.fleet  # a name of its own: what others asked of "digits" a moment ago would keep that awake
    platform.deploy("sleeper", ONE, replicas={"minimum": 0, "maximum": 1, "zero_after_s": 1.0})
    platform.wait("sleeper")
    until(lambda: platform.status("sleeper").phase == "scaled-to-zero", "a deployment at zero")
    until(lambda: not platform.status("sleeper").replicas, "no replica")
    began = time.monotonic()
    with callers(running.http, count=20, name="sleeper") as outcomes:
        until(lambda: sum(outcomes.values()) >= 100, "100 answers")
        first = time.monotonic() - began
    assert set(outcomes) == {"200 by 1"}
    assert first < 30


def test_grpc_clients_are_served(running: RunningFleet) -> None:
    running.fleet.deploy("digits", TWO)
    running.fleet.wait("digits")
    with triton.InferenceServerClient(running.grpc) as client:
        given = triton.InferInput("image", [1, 64], "FP32")
        given.set_data_from_numpy(np.array([ROWS[0]["image"]], dtype=np.float32))
        until(lambda: client.is_model_ready("digits"), "the model over gRPC")
        answer = client.infer("digits", [given])
        assert answer.as_numpy("label").tolist() == [ROWS[0]["digit"]]


def test_a_shadow_is_deployed_compared_and_taken_out_by_commands(running: RunningFleet) -> None:
    first = penstock(running, "deploy", "digits", ONE, "--shadow", "0.5", check=False)
    assert first.returncode == 2 and "beside one that serves" in first.stderr
    penstock(running, "deploy", "digits", ONE, "--env", "A=1", "--env", "B=2")
    penstock(running, "deploy", "digits", TWO, "--shadow", "1", "--env", "A-")
    assert running.fleet.status("digits").wish["env"] == {"B": "2"}
    until(lambda: running.fleet.status("digits").arms[1].shadow, "a shadow")
    assert "ready, shadow" in penstock(running, "status", "digits").stdout

    def compared() -> bool:
        assert ask(running.http)[1]["penstock-revision"] == "1"
        return bool(running.fleet.comparison("digits")["comparisons"])

    until(compared, "a comparison")
    head, row = penstock(running, "comparison", "digits", "--examples").stdout.splitlines()[:2]
    assert head.startswith("shadow\tcompared") and row.startswith("revision 2\t")
    penstock(running, "traffic", "digits", "--sticky", "cookie:user")
    penstock(running, "deploy", "digits", "--traffic", "canary", "--traffic-option", "steps=[0.1, 0.5]")
    penstock(running, "deploy", "digits", "--traffic", "canary")
    assert running.fleet.status("digits").wish["traffic"] == {
        "policy": "canary", "options": {"steps": [0.1, 0.5]}, "sticky": {"by": "cookie", "name": "user"},
        "shadow": {"revision": 2, "share": 1.0},
    }, "what is not given stays as it was"  # fmt: skip
    penstock(running, "traffic", "digits", "--shadow", "off")
    until(lambda: ask(running.http, cookie="user=a")[1].get("penstock-decision"), "a canary")


def test_a_file_is_applied_and_shows_no_difference_then(running: RunningFleet, tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(f"deployments:\n  digits:\n    model: {ONE}\n    replicas: 1..2\n")
    assert penstock(running, "diff", str(file), check=False).returncode == 1
    penstock(running, "apply", str(file))
    assert penstock(running, "diff", str(file)).stdout == ""
    assert ask(running.http)[0] == 200
    file.write_text("deployments: {}\n")
    penstock(running, "apply", str(file), "--prune")
    until(lambda: not running.fleet.deployments(), "no deployment")
    assert ask(running.http)[0] == 404


def test_a_second_platform_with_the_same_state_is_refused(running: RunningFleet) -> None:
    command = [sys.executable, "-m", "penstock.cli", "up", "--state", str(running.state), "--http-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"process {running.process.pid}" in done.stderr
    port = running.http.rpartition(":")[2]
    command = [sys.executable, "-m", "penstock.cli", "up", "--state", f"{running.state}-2", "--http-port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "another port is free with 0" in done.stderr


def test_only_its_owner_reaches_the_controller(running: RunningFleet) -> None:
    assert (running.state / "fleet.sock").stat().st_mode & 0o077 == 0
    assert running.state.stat().st_mode & 0o077 == 0
