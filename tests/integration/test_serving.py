"""What a user sees of one server: answers, refusals, deadlines, crashes, stops. Real processes, real sockets, real kills."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import until

import penstock
from penstock.core.errors import DeadlineExceeded, InvalidInput, NotFound, Overloaded, PenstockError, ServableError

Factory = Callable[..., Any]
MODELS = Path(__file__).parent / "models" / "behaving.py"


def model(name: str, **options: object) -> dict[str, object]:
    # Made-up inputs would make `slow` sleep.
    return {"path": f"{MODELS}:{name}", "warm_up": name != "slow", **options}


def infer(running: Any, name: str, x: list[float], **more: Any) -> penstock.Result:
    with penstock.Client(running.http, retries=0) as client:
        return client.infer(name, {"x": np.array(x)}, **more)


def raw_body(x: list[float], **parameters: object) -> bytes:
    inputs = [{"name": "x", "datatype": "FP64", "shape": [len(x)], "data": x}]
    return json.dumps({"inputs": inputs, "parameters": parameters}).encode()


def post(
    running: Any, path: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], Any]:
    host = running.http.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request("POST", path, body, headers or {})
        response = connection.getresponse()
        data = response.read()
        return response.status, dict(response.getheaders()), json.loads(data) if data else None
    finally:
        connection.close()


def test_one_bad_row_of_a_batch_fails_alone(server: Factory) -> None:
    running = server({"double": model("double", batch_delay_s=0.05)})
    values = [float(number) for number in range(16)]
    values[5] = -1.0
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(infer, running, "double", [value]) for value in values]
    for value, future in zip(values, futures, strict=True):
        if value < 0:
            with pytest.raises(ServableError, match="negative"):
                future.result()
        else:
            assert future.result()["y"].tolist() == [2 * value]


def test_more_rows_than_a_batch_may_hold_come_back_whole_and_in_order(server: Factory) -> None:
    running = server({"double": model("double", max_batch_size=8)})
    x = [float(number) for number in range(1001)]
    assert infer(running, "double", x)["y"].tolist() == [2 * value for value in x]


@pytest.mark.alone
def test_deadline_is_answered_while_the_model_still_computes_and_the_slot_stays_taken(
    server: Factory, tmp_path: Path
) -> None:
    running = server({"slow": model("slow", workers=1)})
    began = time.monotonic()
    status, _, answer = post(running, "/v2/models/slow/infer", raw_body([1.9], timeout=200_000))
    assert (status, answer["error"]) == (504, "the deadline passed while the model was computing")
    assert 0.19 < time.monotonic() - began < 0.6
    assert infer(running, "slow", [2.0])["y"].tolist() == [2.0]
    assert time.monotonic() - began > 0.9  # the worker was not free before it had finished


def test_late_and_abandoned_requests_never_reach_user_code(
    server: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "ran.log"
    monkeypatch.setenv("RAN_LOG", str(log))
    running = server({"slow": model("slow", workers=1)})
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        busy = pool.submit(infer, running, "slow", [1.7])
        until(lambda: log.exists() and "1.7" in log.read_text())
        late = [
            pool.submit(post, running, "/v2/models/slow/infer", raw_body([50 + i], timeout=50_000)) for i in range(3)
        ]
        host, port = running.http.removeprefix("http://").split(":")
        for value in range(60, 63):
            body = raw_body([value])
            with socket.create_connection((host, int(port))) as client:
                head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
        assert [future.result()[0] for future in late] == [504, 504, 504]
        assert busy.result()["y"].tolist() == [1.7]
    assert infer(running, "slow", [3.0])["y"].tolist() == [3.0]
    assert log.read_text().split() == ["1.7", "3"]


def test_full_queue_refuses_at_once_and_says_when_to_come_back(server: Factory) -> None:
    running = server({"slow": model("slow", workers=1, max_queue=2)})
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        began = time.monotonic()
        answers = [pool.submit(post, running, "/v2/models/slow/infer", raw_body([1.4])) for _ in range(8)]
        refused = []
        for future in concurrent.futures.as_completed(answers):
            status, headers, _ = future.result()
            if status == 503:
                assert int(headers["Retry-After"]) >= 1
                refused.append(time.monotonic() - began)
    assert len(refused) == 5 and max(refused) < 0.35
    assert "queue_full" in penstock_metrics(running)


def penstock_metrics(running: Any) -> str:
    connection = http.client.HTTPConnection(running.http.removeprefix("http://"), timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


@pytest.mark.alone
def test_unreachable_deadline_is_refused_at_admission(server: Factory) -> None:
    running = server({"slow": model("slow", workers=1)})
    infer(running, "slow", [1.4])  # now the server knows how long one takes
    infer(running, "slow", [1.4])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        busy = [pool.submit(infer, running, "slow", [1.3]) for _ in range(3)]
        until(lambda: 'penstock_requests_queued{model="slow",version="1"} 2' in penstock_metrics(running))
        began = time.monotonic()
        status, headers, answer = post(running, "/v2/models/slow/infer", raw_body([1.0], timeout=150_000))
        assert status == 503 and "deadline" in answer["error"] and "Retry-After" in headers
        assert time.monotonic() - began < 0.1
        for future in busy:
            future.result()


def test_killed_worker_fails_its_batch_retryably_and_is_replaced(server: Factory) -> None:
    running = server({"slow": model("slow", workers=1)})
    pid = int(infer(running, "slow", [1.0])["pid"][0])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        held = pool.submit(post, running, "/v2/models/slow/infer", raw_body([1.9]))
        until(lambda: 'penstock_requests_in_flight{model="slow",version="1"} 1' in penstock_metrics(running))
        waiting = pool.submit(infer, running, "slow", [2.0])
        time.sleep(0.05)  # the second request is on its way into the queue; its order does not matter for the claim
        os.kill(pid, signal.SIGKILL)
        status, headers, answer = held.result()
        assert status == 503 and "SIGKILL" in answer["error"] and "Retry-After" in headers
        replaced = waiting.result()  # the queue survives its worker
    assert replaced["y"].tolist() == [2.0] and int(replaced["pid"][0]) != pid
    assert "penstock_worker_restarts_total" in penstock_metrics(running)


def test_request_that_ends_workers_is_quarantined(server: Factory) -> None:
    running = server({"slow": model("slow", workers=1)})
    statuses = []
    for _ in range(3):
        status, _, answer = post(running, "/v2/models/slow/infer", raw_body([666.0]))
        statuses.append(status)
        until(lambda: infer_works(running))
    assert statuses == [503, 503, 500]
    assert "ended 2 workers" in answer["error"]


def infer_works(running: Any) -> bool:
    try:
        return infer(running, "slow", [1.0])["y"].tolist() == [1.0]
    except PenstockError:
        return False


@pytest.mark.parametrize("how", ["stopped", "spinning"])
def test_stuck_worker_is_found_and_replaced(server: Factory, how: str) -> None:
    running = server({"m": model("slow" if how == "stopped" else "spin", workers=1, hang_s=1.0, timeout_s=1.0)})
    if how == "stopped":
        os.kill(int(infer(running, "m", [1.0])["pid"][0]), signal.SIGSTOP)
        assert infer(running, "m", [1.0], timeout_s=10.0)["y"].tolist() == [1.0], "user code had not seen it"
    else:
        with pytest.raises(PenstockError):
            infer(running, "m", [5.0], timeout_s=1.0)

    def answers() -> bool:
        try:
            return infer(running, "m", [1.0], timeout_s=1.0)["y"].tolist() == [1.0]
        except PenstockError:
            return False

    until(answers, 15)
    log = running.log.read_text()
    assert "worker_stuck" in log
    if how == "spinning":
        assert "in spin" in log  # the stacks were saved


def test_stop_signal_lets_requests_in_flight_finish_and_takes_no_new_ones(server: Factory) -> None:
    running = server({"slow": model("slow", workers=1)}, grace_s=10.0)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        held = pool.submit(infer, running, "slow", [1.9])
        until(lambda: 'penstock_requests_in_flight{model="slow",version="1"} 1' in penstock_metrics(running))
        running.process.send_signal(signal.SIGTERM)
        host, port = running.http.removeprefix("http://").split(":")

        def refused() -> bool:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                return True
            return False

        until(refused, 1.0)
        assert held.result()["y"].tolist() == [1.9]
    assert running.process.wait(5) == 0


def test_second_stop_signal_does_not_wait(server: Factory) -> None:
    running = server({"slow": model("slow", workers=1)}, grace_s=30.0, lame_duck_s=30.0)
    running.process.send_signal(signal.SIGTERM)
    until(lambda: not ready(running))
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(2) == 128 + signal.SIGTERM


def ready(running: Any) -> bool:
    connection = http.client.HTTPConnection(running.http.removeprefix("http://"), timeout=5)
    connection.request("GET", "/v2/health/ready")
    status = connection.getresponse().status
    connection.close()
    return status == 200


def test_lame_duck_serves_while_it_is_not_ready(server: Factory) -> None:
    running = server({"double": model("double")}, lame_duck_s=1.0)
    running.process.send_signal(signal.SIGTERM)
    until(lambda: not ready(running))
    assert infer(running, "double", [4.0])["y"].tolist() == [8.0]
    assert running.process.wait(5) == 0


def test_no_process_is_left_behind_when_the_server_is_killed(server: Factory) -> None:
    running = server({"slow": model("slow", workers=2)}, fronts=2)
    until(lambda: penstock_metrics(running).count('penstock_worker_ready{model="slow"') == 2)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    assert len(children) >= 3
    running.stop(signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 5)


def test_wrong_inputs_are_refused_by_name(server: Factory) -> None:
    running = server({"double": model("double")})
    with penstock.Client(running.http, retries=0) as client:
        with pytest.raises(InvalidInput, match="'z'"):
            client.infer("double", {"z": np.zeros(1)})
        with pytest.raises(InvalidInput, match="FP32"):
            client.infer("double", {"x": np.zeros(1, "f4")})
        with pytest.raises(InvalidInput, match="shape"):
            client.infer("double", {"x": np.zeros((1, 1))})
        with pytest.raises(InvalidInput, match="at least one row"):
            client.infer("double", {"x": np.zeros(0)})
        with pytest.raises(InvalidInput, match="'nothing'"):
            client.infer("double", {"x": np.zeros(1)}, outputs=["nothing"])
        with pytest.raises(NotFound, match="double"):
            client.infer("twice", {"x": np.zeros(1)})
        assert list(client.infer("double", {"x": np.ones(1)}, outputs=["y"])) == ["y"]


def test_stream_over_server_sent_events_and_a_broken_one_ends_with_an_error(server: Factory) -> None:
    running = server({"totals": model("totals", workers=1)})
    with penstock.Client(running.http) as client:
        got = [float(item["total"]) for item in client.stream("totals", {"x": np.array([1.0, 2.0, 3.0])})]
        assert got == [1.0, 3.0, 6.0]
        broken = client.stream("totals", {"x": np.array([1.0, 101.0])})
        assert float(next(broken)["total"]) == 1.0
        with pytest.raises(ServableError, match="too large"):
            next(broken)


def test_client_that_leaves_a_stream_stops_the_model(
    server: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "ran.log"
    monkeypatch.setenv("RAN_LOG", str(log))
    running = server({"totals": model("totals", workers=1)})
    with penstock.Client(running.http) as client:
        for number, _ in enumerate(client.stream("totals", {"x": np.ones(5000)})):
            if number == 3:
                break
    with penstock.Client(running.http) as client:
        assert [float(i["total"]) for i in client.stream("totals", {"x": np.array([2.0])})] == [2.0]
    assert len(log.read_text().split()) < 200


def test_only_the_asked_for_addresses_listen(server: Factory) -> None:
    running = server({"double": model("double")}, fronts=2)
    pids = [running.pid, *map(int, Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split())]
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = {  # grpc listens on the same address, written as one of IPv6
        fields[1].removeprefix("0000000000000000FFFF0000")
        for table in ("tcp", "tcp6")
        for fields in (line.split() for line in Path(f"/proc/{running.pid}/net/{table}").read_text().splitlines()[1:])
        if fields[3] == "0A" and fields[9] in inodes
    }
    ports = {int(running.http.rsplit(":", 1)[1]), int(running.grpc.rsplit(":", 1)[1])}
    assert listening == {f"0100007F:{port:04X}" for port in ports}


def test_overload_and_deadline_keep_their_types_in_the_client(server: Factory) -> None:
    running = server({"slow": model("slow", workers=1, max_queue=1)})
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(infer, running, "slow", [1.5]) for _ in range(4)]
        errors = [future.exception() for future in futures]
    assert sum(isinstance(error, Overloaded) for error in errors) == 2
    with pytest.raises(DeadlineExceeded):
        infer(running, "slow", [1.5], timeout_s=0.1)


@pytest.mark.alone
def test_stop_ends_within_its_grace_although_the_model_computes_on(server: Factory) -> None:
    running = server({"slow": model("slow", workers=1)}, grace_s=0.3)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(post, running, "/v2/models/slow/infer", raw_body([1.99]))
        until(lambda: 'penstock_requests_in_flight{model="slow",version="1"} 1' in penstock_metrics(running))
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 0.8
