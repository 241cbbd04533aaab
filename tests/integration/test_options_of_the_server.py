"""Options of the server, each seen to have its effect from outside. `tests/unit/test_every_option.py` lists them."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
import trustme

from penstock.client import Client, Tls
from penstock.core.errors import PenstockError

SAME = """
import penstock

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def same(x):
    return {"y": x}
"""
ONE = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}

Start = Callable[..., Any]


@pytest.fixture
def start(server: Start, tmp_path: Path) -> Start:
    """Starts a server for one small model."""
    (tmp_path / "small.py").write_text(SAME)
    table = {"path": f"{tmp_path}/small.py:same", "workers": 1}
    return lambda **options: server({"same": table}, **options)


def call(
    running: Any,
    body: object = ONE,
    headers: Mapping[str, str] | None = None,
    path: str = "/v2/models/same/infer",
    method: str = "POST",
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers (lower case) and body of one request on a connection of its own."""
    parts = urlsplit(running.http)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data if method == "POST" else None, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def dial(running: Any) -> socket.socket:
    parts = urlsplit(running.http)
    return socket.create_connection((str(parts.hostname), parts.port or 0), timeout=20)


def seconds_until_closed(connection: socket.socket) -> float:
    begun = time.monotonic()
    while connection.recv(4096):
        pass
    return time.monotonic() - begun


def many(count: int) -> dict[str, object]:
    return {"inputs": [{"name": "x", "shape": [count], "datatype": "FP32", "data": [0] * count}]}


def test_what_is_larger_or_deeper_than_its_limit_is_refused(start: Start) -> None:
    limits = {
        "max_body_bytes": "2KiB",
        "max_header_bytes": 1024,
        "max_json_depth": 8,
        "max_tensor_bytes": 64,
        "max_decompressed_bytes": "4KiB",
    }
    running, text = start(**limits), json.dumps(ONE).encode()
    assert call(running, text + b" " * (2000 - len(text)))[0] == 200
    assert call(running, text + b" " * 2048)[0] == 413

    assert call(running, headers={"x-long": "a" * 200})[0] == 200
    assert call(running, headers={"x-long": "a" * 2000})[0] == 431

    assert call(running, many(16))[0] == 200
    assert call(running, many(17))[0] == 413

    packed = {"Content-Encoding": "gzip"}
    assert call(running, gzip.compress(text + b" " * 3000), packed)[0] == 200
    assert call(running, gzip.compress(text + b" " * 5000), packed)[0] == 413

    deep = {"name": "x", "shape": [1] * 9, "datatype": "FP32", "data": json.loads("[" * 9 + "1" + "]" * 9)}
    status, _, body = call(running, {"inputs": [deep]})
    assert status == 400 and b"at most 8 levels" in body


def test_more_connections_than_max_connections_are_refused_with_503(start: Start) -> None:
    running = start(max_connections=2)
    with dial(running), dial(running), dial(running) as third:
        third.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 503 " in third.recv(4096)
    deadline = time.monotonic() + 10  # the two are closed, and room is seen to be there again
    while call(running)[0] != 200:
        assert time.monotonic() < deadline


def test_heads_bodies_and_idle_connections_have_times_of_their_own(start: Start) -> None:
    running = start(header_timeout_s=0.3, body_timeout_s=1.2, keep_alive_s=2.4)
    with dial(running) as head, dial(running) as body, dial(running) as idle:
        head.sendall(b"POST /v2/models/same/infer HTTP/1.1\r\nHost")
        body.sendall(b"POST /v2/models/same/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        begun = time.monotonic()
        waits = []
        for connection in (head, body, idle):
            seconds_until_closed(connection)
            waits.append(time.monotonic() - begun)
    assert waits[0] > 0.25 and waits[1] > 1.1 and waits[2] > 2.3
    assert waits[0] < waits[1] < waits[2] < 20


def test_timing_headers_puts_the_split_into_every_answer(start: Start) -> None:
    assert "server-timing" in call(start(timing_headers=True))[1]
    quiet = start()
    assert "server-timing" not in call(quiet)[1]
    assert "server-timing" in call(quiet, headers={"penstock-timing": "1"})[1]


def test_the_keys_of_api_key_file_are_taken_and_no_others(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("first-key\nsecond-key\n")
    running = start(api_key_file=str(tmp_path / "keys"))
    for key, status in (("first-key", 200), ("second-key", 200), ("third-key", 401), ("", 401)):
        assert call(running, headers={"Authorization": f"Bearer {key}"})[0] == status
    assert call(running, path="/v2/health/live", method="GET")[0] == 200


def test_host_and_allow_anonymous_open_another_address_without_a_key(start: Start) -> None:
    running = start(host="0.0.0.0", allow_anonymous=True)
    running.http = running.http.replace("0.0.0.0", "127.0.0.2")
    assert call(running)[0] == 200
    closed = start()  # on 127.0.0.1 only
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", urlsplit(closed.http).port or 0), timeout=5)


def test_the_named_ports_are_listened_on(start: Start) -> None:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        http_port, grpc_port = one.getsockname()[1], other.getsockname()[1]
    running = start(http_port=http_port, grpc_port=grpc_port)
    assert running.http == f"http://127.0.0.1:{http_port}" and running.grpc == f"127.0.0.1:{grpc_port}"
    assert call(running)[0] == 200
    socket.create_connection(("127.0.0.1", grpc_port), timeout=5).close()


def test_log_format_and_log_level_decide_what_lines_look_like_and_which_there_are(start: Start) -> None:
    talkative = start(log_level="info")
    lines = talkative.log.read_text().splitlines()
    assert lines and all("event" in json.loads(line) for line in lines)
    assert start(log_level="error").log.read_text() == ""


def test_log_format_text_is_no_json(tmp_path: Path, start: Start) -> None:
    (tmp_path / "small.py").write_text(SAME)
    command = ["serve", "small.py:same", "--log-format", "text", "--http-port", "0", "--no-grpc"]
    with subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", *command],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        process.terminate()
        log = process.stderr.read()
    assert first.startswith("ready  same@1")
    assert "model_ready" in log and not log.startswith("{")


def listeners(port: int | None) -> int:
    """How many sockets listen on a TCP port of 127.0.0.1. Source: proc(5), /proc/net/tcp; state 0A is LISTEN."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1] == f"0100007F:{port or 0:04X}" and line.split()[3] == "0A" for line in lines)


def test_fronts_are_as_many_listeners_on_one_port(start: Start) -> None:
    for fronts in (1, 3):
        running = start(fronts=fronts)
        deadline = time.monotonic() + 15
        while listeners(urlsplit(running.http).port) != fronts:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert all(call(running)[0] == 200 for _ in range(12))


def callers_ports(port: int) -> set[str]:
    """Local ends of established connections to a port of this machine."""
    tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]  # grpc speaks IPv4 through IPv6 sockets
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"}


def test_grpc_connections_are_made_anew_at_their_age_and_no_call_is_lost(start: Start) -> None:
    running = start(grpc_connection_age_s=0.3)
    port = int(running.grpc.rpartition(":")[2])
    seen: set[str] = set()
    with grpc.insecure_channel(running.grpc) as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        deadline = time.monotonic() + 20
        while len(seen) < 3:
            assert live(b"", timeout=10) == b"\x08\x01"
            seen |= callers_ports(port)
            assert time.monotonic() < deadline


def test_grace_s_bounds_the_wait_for_what_is_in_flight(server: Start, tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SAME.replace("    return", "    __import__('time').sleep(20)\n    return"))
    table = {"path": f"{tmp_path}/small.py:same", "workers": 1, "warm_up": False}
    running = server({"same": table}, grace_s=0.3)
    with dial(running) as connection:
        body = json.dumps(ONE)
        head = f"POST /v2/models/same/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        with Client(running.http) as client:
            deadline = time.monotonic() + 15
            while 'penstock_requests_in_flight{model="same",version="1"} 1.0' not in client.metrics():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        begun = time.monotonic()
        assert running.stop() == 0
        assert 0.25 < time.monotonic() - begun < 10


def test_tls_cert_and_tls_key_make_both_ports_speak_tls_and_tls_client_ca_asks_clients_for_theirs(
    start: Start, tmp_path: Path
) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name, signer in (("server", authority), ("client", authority), ("stranger", other)):
        issued = signer.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
        issued.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
    files = {"tls_cert": str(tmp_path / "server.pem"), "tls_key": str(tmp_path / "server.key")}
    ca = str(tmp_path / "ca.pem")

    plain = start(**files)
    assert plain.http.startswith("https://")
    with Client(plain.http, tls=Tls(ca_file=ca)) as client:
        assert client.infer("same", {"x": np.zeros(1, "f4")})["y"].tolist() == [0]
    credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())
    with grpc.secure_channel(plain.grpc, credentials) as channel:
        grpc.channel_ready_future(channel).result(timeout=20)

    mutual = start(**files, tls_client_ca=ca)
    for name, welcome in (("client", True), ("stranger", False)):
        tls = Tls(ca_file=ca, client_cert=str(tmp_path / f"{name}.pem"), client_key=str(tmp_path / f"{name}.key"))
        with Client(mutual.http, tls=tls, retries=0) as client:
            if welcome:
                assert client.live()
            else:
                with pytest.raises(PenstockError):
                    client.live()


def repository(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(SAME.replace("same", name))
    return folder


def serve_folder(folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = ["serve", str(folder), "--http-port", "0", "--no-grpc", "--workers", "1", *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", *command],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


@contextlib.contextmanager
def client_of(process: subprocess.Popen[str]) -> Iterator[Client]:
    assert process.stdout is not None
    try:
        serving = next(event for event in map(json.loads, process.stdout) if event["event"] == "serving")
        with Client(serving["http"], retries=0) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def test_load_models_says_what_an_explicit_server_starts_with(tmp_path: Path) -> None:
    folder = repository(tmp_path / "models", "one", "two")
    with client_of(serve_folder(folder, "--model-control", "explicit", "--load-models", "one")) as client:
        assert client.models() == ["one"]
        client.load("two")
        assert client.models() == ["one", "two"]
    with client_of(serve_folder(folder, "--model-control", "explicit", "--load-models", "*")) as client:
        assert client.models() == ["one", "two"]
    with client_of(serve_folder(folder, "--model-control", "none")) as client, pytest.raises(PenstockError):
        client.unload("one")


def test_a_new_version_is_seen_within_poll_s(tmp_path: Path) -> None:
    folder = repository(tmp_path / "models", "one")
    quickly, rarely = serve_folder(folder, "--poll-s", "100ms"), serve_folder(folder, "--poll-s", "1h")
    with client_of(quickly) as quick, client_of(rarely) as rare:
        shutil.copytree(folder / "one" / "1", folder / "one" / "2")
        deadline = time.monotonic() + 15
        while "2" not in quick.metadata("one").versions:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert rare.metadata("one").versions == ("1",)
