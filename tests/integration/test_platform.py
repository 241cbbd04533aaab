"""A whole platform, as a user runs it: what survives the deaths of its parts, what is left, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from asked_platform import EXAMPLE, ONE, ROWS, TWO, ask, bad, callers, penstock, settled
from running_fleet import FleetFactory, until

from penstock.core.errors import InvalidInput, NotFound

pytestmark = pytest.mark.timeout(240)


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
