"""The platform as its users meet it: real processes, the command line, real callers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from running_fleet import FleetFactory, RunningFleet, until

from penstock.client.fleet_status import Status
from penstock.core.errors import InvalidInput, LoadError, NotFound

pytestmark = pytest.mark.timeout(240)

EXAMPLE = Path(__file__).parents[2] / "examples" / "rollout"
ONE, TWO, FAULTY = (str(EXAMPLE / "models" / "1"), str(EXAMPLE / "models" / "2"), f"{EXAMPLE / 'faulty.py'}:digits")
PAUSE_S = 0.02  # of each caller: enough traffic to see an error, and a machine left for what is tested
ROWS = json.loads((EXAMPLE / "digits.json").read_text())


def penstock(running: RunningFleet, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A command as a user types it."""
    command = [sys.executable, "-m", "penstock.cli", *arguments, "--fleet", str(running.state)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def ask(url: str, name: str = "digits", row: int = 0, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of one question."""
    tensor = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": ROWS[row]["image"]}
    request = urllib.request.Request(
        f"{url}/v2/models/{name}/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {key.replace("_", "-"): value for key, value in headers.items()},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {key.lower(): value for key, value in error.headers.items()}, error.read()


@contextmanager
def callers(url: str, count: int = 4, name: str = "digits") -> Iterator[Counter[str]]:
    """Asks all the time; counts "200 by revision N" and every other outcome by its status or error."""
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    def go(first: int) -> None:
        row = first
        while not stop.is_set():
            row = (row + 1) % len(ROWS)
            try:
                status, headers, _ = ask(url, name, row)
                key = f"200 by {headers.get('penstock-revision')}" if status == 200 else f"{status}"
            except OSError as error:
                key = type(error).__name__
            outcomes[key] += 1
            stop.wait(PAUSE_S)

    threads = [threading.Thread(target=go, args=(first,)) for first in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def bad(outcomes: Counter[str]) -> dict[str, int]:
    return {key: count for key, count in outcomes.items() if not key.startswith("200 by")}


def settled(running: RunningFleet, name: str, revision: int) -> Status:
    """The deployment, once this revision alone has all traffic."""

    def found() -> Status | None:
        status = running.fleet.status(name)
        whole = [arm.revision for arm in status.arms if arm.weight == 1.0]
        return status if whole == [revision] and status.phase == "ready" else None

    return until(found, f"{name} with all traffic at revision {revision}")


def test_a_model_is_deployed_called_updated_and_rolled_back_without_an_error(fleet: FleetFactory) -> None:
    running = fleet()
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


def test_an_update_that_fails_leaves_the_old_revision_serving(fleet: FleetFactory, tmp_path: Path) -> None:
    running = fleet()
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
def test_strategies_change_over_without_an_error(fleet: FleetFactory, strategy: str) -> None:
    running = fleet()
    platform = running.fleet
    platform.deploy("digits", ONE, replicas=2, rollout={"strategy": strategy})
    platform.wait("digits")
    with callers(running.http) as outcomes:
        platform.deploy("digits", TWO)
        settled(running, "digits", 2)
    assert bad(outcomes) == {}


def test_from_zero_requests_are_held_and_answered(fleet: FleetFactory, figure: object) -> None:
    running = fleet()
    platform = running.fleet
    platform.deploy("digits", ONE, replicas={"minimum": 0, "maximum": 1, "zero_after_s": 1.0})
    platform.wait("digits")
    until(lambda: platform.status("digits").phase == "scaled-to-zero", "a deployment at zero")
    until(lambda: not platform.status("digits").replicas, "no replica")
    began = time.monotonic()
    with callers(running.http, count=20) as outcomes:
        until(lambda: sum(outcomes.values()) >= 100, "100 answers")
        first = time.monotonic() - began
    assert set(outcomes) == {"200 by 1"}
    assert first < 30


def test_the_controller_may_die_and_requests_go_on(fleet: FleetFactory) -> None:
    running = fleet()
    platform = running.fleet
    platform.deploy("digits", ONE)
    pid = platform.wait("digits").replicas[0].pid
    watching = platform.watch()
    next(watching)
    with callers(running.http) as outcomes:
        running.kill("controller")
        platform.wait("digits", timeout_s=60.0)
        assert [one.name for one in next(watching)] == ["digits"], "who watches goes on watching"
        counts = (one[0].arms[0].requests for one in platform.watch(refresh_s=0.1))
        first = next(counts)
        until(lambda: next(counts) > first, "figures that grow while nothing else changes")
        assert platform.status("digits").replicas[0].pid == pid, "the replica was started anew"
        platform.deploy("digits", TWO)
        settled(running, "digits", 2)
    assert bad(outcomes) == {}


def test_a_killed_router_cuts_only_what_it_held(fleet: FleetFactory) -> None:
    running = fleet("--routers", "2")
    running.fleet.deploy("digits", ONE)
    running.fleet.wait("digits")
    with callers(running.http) as outcomes:
        until(lambda: sum(outcomes.values()) > 20, "answers")
        running.kill("router-1")
        count = sum(outcomes.values())
        until(lambda: sum(outcomes.values()) > count + 50, "more answers")
    assert sum(bad(outcomes).values()) <= 4, outcomes  # each caller's one request in flight


def test_a_killed_replica_is_replaced(fleet: FleetFactory) -> None:
    running = fleet()
    platform = running.fleet
    platform.deploy("digits", ONE, replicas=2, requests={"idempotent": True})
    status = platform.wait("digits")
    until(lambda: len([one for one in platform.status("digits").replicas if one.state == "ready"]) == 2, "two replicas")
    victim = platform.status("digits").replicas[0]
    with callers(running.http) as outcomes:
        until(lambda: sum(outcomes.values()) > 20, "answers")
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        until(
            lambda: [one.state for one in platform.status("digits").replicas if one.id != victim.id] == ["ready"] * 2,
            "a replica in its place",
        )
    assert bad(outcomes) == {}, status


def test_after_a_kill_of_everything_that_supervises_the_next_one_takes_over(fleet: FleetFactory) -> None:
    running = fleet()
    running.fleet.deploy("digits", ONE)
    pid = running.fleet.wait("digits").replicas[0].pid
    http, grpc = (int(address.rpartition(":")[2]) for address in (running.http, running.grpc))
    with callers(running.http) as outcomes:
        running.process.kill()
        running.process.wait()
        count = sum(outcomes.values())
        until(lambda: sum(outcomes.values()) > count + 20, "answers without a supervisor")
        again = fleet(state=running.state, http_port=http, grpc_port=grpc)
        assert again.fleet.wait("digits").replicas[0].pid == pid
    # A connection that waits in a router's queue when its socket closes is cut; callers that ask again are answered.
    assert sum(bad(outcomes).values()) <= 4, outcomes


def test_nothing_is_left_of_a_platform_that_stopped(fleet: FleetFactory) -> None:
    running = fleet()
    running.fleet.deploy("digits", ONE)
    pids = [one.pid for one in running.fleet.wait("digits").replicas]
    pids += [running.pid(name) for name in ("controller", "router-1")]
    assert running.stop() == 0
    for pid in pids:
        assert pid is not None
        until(lambda pid=pid: not alive(pid), f"the end of process {pid}")
    again = fleet(state=running.state)
    again.fleet.wait("digits")
    assert ask(again.http)[0] == 200


def test_grpc_clients_are_served(fleet: FleetFactory) -> None:
    running = fleet()
    running.fleet.deploy("digits", TWO)
    running.fleet.wait("digits")
    with triton.InferenceServerClient(running.grpc) as client:
        given = triton.InferInput("image", [1, 64], "FP32")
        given.set_data_from_numpy(np.array([ROWS[0]["image"]], dtype=np.float32))
        until(lambda: client.is_model_ready("digits"), "the model over gRPC")
        answer = client.infer("digits", [given])
        assert answer.as_numpy("label").tolist() == [ROWS[0]["digit"]]


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(("up",), marks=pytest.mark.chaos),
        ("up", "controller"),
        pytest.param(("up", "controller", "router-1"), marks=pytest.mark.chaos),
    ],
)
def test_down_stops_what_a_killed_platform_left_running(fleet: FleetFactory, killed: tuple[str, ...]) -> None:
    running = fleet()
    running.fleet.deploy("digits", ONE)
    pids = [one.pid for one in running.fleet.wait("digits").replicas]
    pids += [running.pid(name) for name in ("controller", "router-1")]
    for name in killed:
        os.kill(running.pid(name), signal.SIGKILL)
    running.process.wait()
    command = [sys.executable, "-m", "penstock.cli", "down", "--state", str(running.state), "--grace-s", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    for pid in pids:
        assert pid is not None
        until(lambda pid=pid: not alive(pid), f"the end of process {pid}")
    again = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert again.returncode == 2
    assert "no platform" in again.stderr


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_stopping_ends_replicas_also_when_their_controller_has_just_died(fleet: FleetFactory) -> None:
    running = fleet()
    running.fleet.deploy("digits", ONE)
    running.fleet.wait("digits")
    (replica,) = running.fleet.status("digits").replicas
    assert replica.pid is not None and alive(replica.pid)
    os.kill(running.pid("controller"), signal.SIGKILL)
    running.stop()
    assert not alive(replica.pid)


def test_a_graph_asks_other_endpoints_also_where_callers_need_keys(fleet: FleetFactory, tmp_path: Path) -> None:
    running = fleet()
    key = running.fleet.set_tenant("mobile").key
    for name, model in (("one", ONE), ("two", TWO)):
        running.fleet.deploy(name, model)
        running.fleet.wait(name)
    graph = tmp_path / "both.yaml"
    graph.write_text(
        "kind: Graph\ninputs: {image: 'f4[n, 64]'}\noutputs: {probabilities: 'f4[n, 10]'}\ncombine: average\nensemble:\n"
        "  - {name: a, endpoint: one, outputs: {probabilities: probabilities}}\n"
        "  - {name: b, endpoint: two, outputs: {probabilities: probabilities}}\n"
    )
    running.fleet.deploy("both", graph=str(graph))
    running.fleet.wait("both")
    assert until(lambda: ask(running.http, "both"), "an answer")[0] == 401
    answers = {}
    for name in ("one", "two", "both"):
        status, _, body = ask(running.http, name, Authorization=f"Bearer {key}")
        assert status == 200, body
        outputs = {output["name"]: output["data"] for output in json.loads(body)["outputs"]}
        answers[name] = np.array(outputs["probabilities"])
    assert np.allclose(answers["both"], (answers["one"] + answers["two"]) / 2, atol=1e-6)
    request = urllib.request.Request(
        f"{running.http}/v1/graphs/both",
        json.dumps({"inputs": {"image": [ROWS[0]["image"]]}}).encode(),
        {"Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert np.allclose(json.load(answer)["outputs"]["probabilities"], answers["both"], atol=1e-6)


def test_commands_say_what_is_wrong(fleet: FleetFactory, tmp_path: Path) -> None:
    running = fleet()
    with pytest.raises(NotFound):
        running.fleet.status("nobody")
    with pytest.raises(InvalidInput, match="did you mean"):
        running.fleet.apply("digits", {"model": ONE, "replicass": 3})
    with pytest.raises(InvalidInput):
        running.fleet.apply("digits", {"model": ONE, "traffic": "thomson"})
    done = penstock(running, "deploy", "digits", str(EXAMPLE / "nothing"), check=False)
    assert done.returncode != 0
    assert "nothing" in done.stderr
    graph = tmp_path / "graph.yaml"
    graph.write_text("kind: Graph\nname: g\nsequence:\n  - {endpont: digits}\n")
    with pytest.raises(InvalidInput, match="did you mean 'endpoint'"):
        running.fleet.deploy("g", graph=str(graph))
    graph.write_text("kind: Graph\nname: g\nnodes:\n  a: {sequence: [{node: b}]}\n  b: {sequence: [{node: a}]}\n"
                     "sequence: [{node: a}]\n")  # fmt: skip
    with pytest.raises(InvalidInput, match="circle"):
        running.fleet.deploy("g", graph=str(graph))
    done = penstock(running, "status", "nobody", check=False)
    assert done.returncode == 2
    done = penstock(running, "deploy", "digits", check=False)
    assert done.returncode == 2 and "give a model or a graph" in done.stderr
    done = penstock(running, "tenants", "--delete", check=False)
    assert done.returncode == 2 and "NAME" in done.stderr
    penstock(running, "tenants", "mobile", "--rate", "5")
    shown = penstock(running, "tenants", "mobile").stdout
    assert shown.splitlines()[1].startswith("mobile\t5.0\t"), "asked for by its name only, it is shown"
    running.fleet.deploy("digits", Path(ONE))
    done = penstock(running, "delete", "digits", "nobody", check=False)
    assert done.returncode == 2 and running.fleet.status("digits").phase != "deleting"


def test_a_shadow_is_deployed_compared_and_taken_out_by_commands(fleet: FleetFactory) -> None:
    running = fleet()
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


def test_a_file_is_applied_and_shows_no_difference_then(fleet: FleetFactory, tmp_path: Path) -> None:
    running = fleet()
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


def test_a_second_platform_with_the_same_state_is_refused(fleet: FleetFactory) -> None:
    running = fleet()
    command = [sys.executable, "-m", "penstock.cli", "up", "--state", str(running.state), "--http-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"process {running.process.pid}" in done.stderr
    port = running.http.rpartition(":")[2]
    command = [sys.executable, "-m", "penstock.cli", "up", "--state", f"{running.state}-2", "--http-port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "another port is free with 0" in done.stderr


def test_only_its_owner_reaches_the_controller(fleet: FleetFactory) -> None:
    running = fleet()
    assert (running.state / "fleet.sock").stat().st_mode & 0o077 == 0
    assert running.state.stat().st_mode & 0o077 == 0
