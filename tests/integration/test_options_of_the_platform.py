"""Every option of `penstock up` has an effect that a user sees."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from running_fleet import FleetFactory, until

from penstock.client.fleet import Fleet
from penstock.core.errors import InvalidInput, Unauthenticated
from penstock.fleet.up.options import UpOptions, read_options

pytestmark = pytest.mark.timeout(180)

ONE = str(Path(__file__).parents[2] / "examples" / "rollout" / "models" / "1")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_flags_win_over_the_environment_and_typing_errors_are_told() -> None:
    environ = {"PENSTOCK_UP_ROUTERS": "3", "PENSTOCK_UP_HTTP_PORT": "1", "PENSTOCK_URL": "x"}
    assert read_options({"http_port": "2"}, environ) == UpOptions(routers=3, http_port=2)
    with pytest.raises(InvalidInput, match="PENSTOCK_UP_ROUTER"):
        read_options({}, {"PENSTOCK_UP_ROUTER": "3"})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"admin_port": 1}, "admin_key_file"),
        ({"admin_key_file": "x"}, "without admin_port"),
        ({"allow_anonymous": True}, "no effect"),
        ({"routers": 0}, "at least 1|1 to"),
    ],
)
def test_what_would_have_no_effect_or_open_a_door_is_refused(flags: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_options(flags, {})


def test_ports_routers_state_and_logs_are_as_asked(fleet: FleetFactory) -> None:
    http, grpc = free_port(), free_port()
    running = fleet("--routers", "2", "--log-level", "warning", http_port=http, grpc_port=grpc)
    assert (running.http, running.grpc) == (f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}")
    assert running.pid("router-1") != running.pid("router-2")
    assert (running.state / "fleet.db").exists()
    lines = running.log.read_text().splitlines()
    assert not [line for line in lines if json.loads(line)["level"] == "info"]


def test_without_grpc_nothing_listens_for_it(fleet: FleetFactory) -> None:
    running = fleet("--no-grpc")
    assert running.grpc == ""
    assert status(f"{running.http}/v2/health/live") == 200


def test_the_admin_port_is_there_for_those_with_its_key_only(fleet: FleetFactory, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a-long-admin-key\n")
    running = fleet("--admin-port", "0", "--admin-key-file", str(key), "--admin-host", "127.0.0.1")
    url = next(json.loads(line)["admin"] for line in running.lines if '"up"' in line)
    assert Fleet(url, key="a-long-admin-key").deployments() == []
    for wrong in (None, "another-key"):
        with pytest.raises(Unauthenticated):
            Fleet(url, key=wrong).deployments()


def test_on_another_address_callers_need_a_key_unless_anonymous_ones_are_allowed(fleet: FleetFactory) -> None:
    running = fleet("--host", "0.0.0.0")
    running.fleet.deploy("m", ONE)
    running.fleet.wait("m")
    url = f"http://127.0.0.1:{running.http.rpartition(':')[2]}"
    assert status(f"{url}/v2/models/m") == 401
    key = running.fleet.set_tenant("mobile").key
    until(lambda: status(f"{url}/v2/models/m", Authorization=f"Bearer {key}") == 200, "an answer to the key")
    running.stop()
    again = fleet("--host", "0.0.0.0", "--allow-anonymous", state=running.state)
    again.fleet.delete_tenant("mobile")
    url = f"http://127.0.0.1:{again.http.rpartition(':')[2]}"
    until(lambda: status(f"{url}/v2/models/m") == 200, "an answer without a key")


def test_grace_s_bounds_the_wait_for_what_is_in_flight(fleet: FleetFactory, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nimport penstock\n\n\n"
        '@penstock.model(inputs={"x": "f4[n, 1]"}, outputs={"y": "f4[n, 1]"})\n'
        "def slow(x):\n    time.sleep(float(x[0, 0]))\n    return {'y': x}\n"
    )
    running = fleet("--grace-s", "1")
    running.fleet.deploy("m", f"{tmp_path}/slow.py:slow", rollout={"drain_s": 1.0})
    running.fleet.wait("m")
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [60.0]}]}
    with socket.create_connection(("127.0.0.1", int(running.http.rpartition(":")[2]))) as caller:
        text = json.dumps(body)
        caller.sendall(
            f"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
        )
        until(lambda: "in flight" and running.fleet.status("m").replicas[0].state == "ready", "the request on its way")
        assert running.stop() == 0  # long before the 60 s


def test_an_unknown_driver_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "penstock.cli", "up", "--state", str(tmp_path / "s"), "--http-port", "0"]
    command += ["--grpc-port", "0"]
    done = subprocess.run([*command, "--driver", "moon"], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode != 0
    assert "moon" in done.stderr


def test_the_state_may_be_in_postgresql(
    fleet: FleetFactory, postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres()
    monkeypatch.setenv("PENSTOCK_UP_DATABASE", url)
    running = fleet()
    running.fleet.deploy("m", ONE)
    running.fleet.wait("m")
    assert status(f"{running.http}/v2/models/m") == 200
    assert not (running.state / "fleet.db").exists()
    running.kill("controller")
    until(lambda: running.fleet.status("m").phase == "ready", "the deployment, from the database")
    for pid in (running.pid("controller"), running.pid("router-1")):
        assert url not in Path(f"/proc/{pid}/cmdline").read_text()
