"""Every option of `penstock up` has an effect that a user sees."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme
from running_fleet import FleetFactory, until

from penstock.client import Client, Tls
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
        ({"tls_cert": "x"}, "need each other"),
        ({"tls_key": "x"}, "need each other"),
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


def test_tls_cert_and_tls_key_make_the_public_ports_speak_tls_and_graphs_reach_others_all_the_same(
    fleet: FleetFactory, tmp_path: Path
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")  # and for no address, as most certificates
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "server.pem", "server.key"))
    authority.cert_pem.write_to_path(ca)
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    graph = tmp_path / "graph.yaml"
    graph.write_text(
        "kind: Graph\ninputs: {image: 'f4[n, 64]'}\noutputs: {probabilities: 'f4[n, 10]'}\nsequence:\n"
        "  - {name: a, endpoint: m, outputs: {probabilities: probabilities}}\n"
    )
    running = fleet("--routers", "2", "--tls-cert", cert, "--tls-key", key)
    running.fleet.deploy("m", ONE)
    running.fleet.wait("m")
    running.fleet.deploy("g", graph=str(graph))
    running.fleet.wait("g")
    assert running.http.startswith("https://")
    port = int(running.http.rpartition(":")[2])
    image = {"image": np.zeros((1, 64), "f4")}
    with Client(f"https://localhost:{port}", tls=Tls(ca_file=ca)) as client:
        assert client.infer("g", image)["probabilities"].shape == (1, 10)
        large = client.infer("m", {"image": np.zeros((5000, 64), "f4")})  # 1.3 MB: streamed both ways
        assert large["probabilities"].shape == (5000, 10)
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"live" not in plain.recv(1000), "the public port speaks TLS only"
    credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())
    with grpc.secure_channel(f"localhost:{running.grpc.rpartition(':')[2]}", credentials) as channel:
        grpc.channel_ready_future(channel).result(timeout=20)
    inner = json.loads((running.state / "up.json").read_text())["ports"]["inner"]
    running.process.kill()  # replicas go on, and know that port
    running.process.wait()
    again = fleet("--tls-cert", cert, "--tls-key", key, state=running.state)
    assert json.loads((again.state / "up.json").read_text())["ports"]["inner"] == inner
    with Client(again.http.replace("127.0.0.1", "localhost"), tls=Tls(ca_file=ca)) as client:
        assert client.infer("g", image)["probabilities"].shape == (1, 10)


def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    files = ["--tls-cert", str(tmp_path / "no.pem"), "--tls-key", str(tmp_path / "no.pem")]
    command = [sys.executable, "-m", "penstock.cli", "up", "--state", str(tmp_path / "s"), "--http-port", "0", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode != 0
    assert f"TLS certificate {tmp_path / 'no.pem'}" in done.stderr


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
