"""F20: short of files, processes, threads or shared memory, a server refuses early, serves on, and recovers."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from confined import confine, group, need_mounts
from waiting import until
from watched_processes import cpu_s, family, held_by

import penstock
from penstock.core.errors import DeadlineExceeded, Overloaded, PenstockError

pytestmark = pytest.mark.alone

__all__ = ["confine", "group"]  # fixtures

MODELS = """
import os
import numpy as np
import penstock


@penstock.model(inputs={"x": "f8[n]"}, outputs={"pid": "i8[n]"}, batch=False)
def one(x):
    return {"pid": [os.getpid()] * len(x)}


@penstock.model(inputs={"x": "f8[n]"}, outputs={"pid": "i8[n]"}, batch=False)
def two(x):
    return {"pid": [os.getpid()] * len(x)}


@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"}, batch=False)
def large(x):
    return {"y": np.zeros(int(x[0]))}
"""

ONE = """
@penstock.model(inputs={"x": "f8[n]"}, outputs={"pid": "i8[n]"})
def one(x):
    return {"pid": [os.getpid()] * len(x)}
"""

SHORTAGES = ("Resource temporarily unavailable", "can't start new thread", "before it could load the model")


def models(folder: Path) -> dict[str, dict[str, object]]:
    (folder / "models.py").write_text(MODELS)
    return {
        name: {"path": f"{folder}/models.py:{name}", "workers": 1, "warm_up": False} for name in ("one", "two", "large")
    }


def pid_of(client: penstock.Client, model: str) -> int:
    return int(client.infer(model, {"x": np.array([1.0])}, timeout_s=10.0)["pid"][0])


def eventually(ask: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `ask` gives back as soon as it does not fail any more."""
    end = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except (PenstockError, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def events(running: Any, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


@contextlib.contextmanager
def connections(address: str, count: int) -> Iterator[None]:
    """Opens connections and holds them."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            held.append(socket.create_connection((host.strip("[]"), int(port)), timeout=5))  # noqa: PERF401  # all close
        yield
    finally:
        for one in held:
            one.close()


@pytest.mark.parametrize("port", ["http", pytest.param("grpc", marks=pytest.mark.chaos)])
def test_without_files_left_connections_that_are_open_are_served_and_others_later(
    server: Callable[..., Any], confine: Callable[..., None], tmp_path: Path, port: str
) -> None:
    confine("ulimit -n 120")
    running = server(models(tmp_path))
    # Two clients: one whose request was late has closed its connection and gets no other.
    with penstock.Client(running.http, retries=0) as client, penstock.Client(running.http, retries=0) as other:
        first = pid_of(client, "one")
        assert pid_of(other, "two") > 0
        with connections(getattr(running, port), 150):
            until(lambda: held_by(running.pid)[0].open_files >= 110, 30.0)
            before, began = cpu_s(running.pid), time.monotonic()
            asked = 0
            while time.monotonic() - began < 1.0:
                assert pid_of(client, "one") == first
                asked += 1
                time.sleep(0.02)
            # Nobody spins on a connection that cannot be accepted: an answer takes well below 2 ms.
            assert cpu_s(running.pid) - before < 0.35 + 0.004 * asked
            os.kill(first, 9)
            until(lambda: events(running, "worker_start_failed") != [], 30.0)
            # A replacement might come any moment, so a request waits for it as long as its caller allows.
            with pytest.raises(DeadlineExceeded):
                client.infer("one", {"x": np.array([1.0])}, timeout_s=1.0)
            assert pid_of(other, "two") > 0
        assert eventually(lambda: pid_of(client, "one")) != first
    with penstock.Client(running.http, retries=0) as newcomer:
        assert eventually(lambda: pid_of(newcomer, "two")) > 0


def test_without_processes_left_the_others_serve_and_the_lost_worker_comes_back(
    server: Callable[..., Any], confine: Callable[..., None], group: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = group("pids")
    confine(f"echo $$ > {folder}/cgroup.procs")
    running = server(models(tmp_path), poll_s=0.05)
    with penstock.Client(running.http, retries=0) as client, grpc.insecure_channel(running.grpc) as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        first, second = pid_of(client, "one"), pid_of(client, "two")
        # The worker's own threads are counted too: when it is gone there is room for the process, not for its thread.
        now = int((folder / "pids.current").read_text())
        for room in (now - 3, now - 2):
            (folder / "pids.max").write_text(str(room))
            failed = len(events(running, "worker_start_failed"))
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, 9)
            until(lambda failed=failed: len(events(running, "worker_start_failed")) > failed + 1, 30.0)
            with pytest.raises(DeadlineExceeded):
                client.infer("one", {"x": np.array([1.0])}, timeout_s=1.0)
            assert pid_of(client, "two") == second
        (folder / "pids.max").write_text("max")
        assert eventually(lambda: pid_of(client, "one")) != first
        assert pid_of(client, "two") == second
        assert live(b"", timeout=10) == bytes([8, 1])
    with grpc.insecure_channel(running.grpc, [("grpc.use_local_subchannel_pool", 1)]) as newcomer:
        assert newcomer.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=10) == bytes([8, 1])
    delays = [event["retry_in_s"] for event in events(running, "worker_start_failed")]
    assert delays == sorted(delays)


def test_version_that_found_no_process_is_loaded_when_there_is_one(
    server: Callable[..., Any], confine: Callable[..., None], group: Callable[[str], Path], tmp_path: Path
) -> None:
    versions = tmp_path / "m"
    for number in (1, 2):
        (versions / str(number)).mkdir(parents=True)
    (versions / "1" / "model.py").write_text(MODELS.partition("@penstock.model")[0] + ONE)
    folder = group("pids")
    confine(f"echo $$ > {folder}/cgroup.procs")
    running = server({"m": str(versions)}, poll_s=0.1)
    with penstock.Client(running.http, retries=0) as client:
        first = pid_of(client, "m")
        (folder / "pids.max").write_text((folder / "pids.current").read_text())
        (versions / "2" / "model.py").write_text((versions / "1" / "model.py").read_text())
        # There may be no thread left to look at the disk, or none for the load that the look asks for.
        until(lambda: events(running, "model_failed") + events(running, "poll_failed") != [], 30.0)
        assert pid_of(client, "m") == first
        (folder / "pids.max").write_text("max")
        until(lambda: len(events(running, "model_ready")) == 2, 30.0)
        assert pid_of(client, "m") != first
    for event in events(running, "model_failed") + events(running, "poll_failed"):
        assert "exception" not in event
        assert any(reason in event["error"] for reason in SHORTAGES), event["error"]


def test_shared_memory_is_not_that_of_dev_shm(
    server: Callable[..., Any], confine: Callable[..., None], tmp_path: Path
) -> None:
    need_mounts()
    confine("mount -t tmpfs -o size=4k,nr_inodes=1 none /dev/shm", mounts=True)
    running = server(models(tmp_path), fronts=2)
    with penstock.Client(running.http, retries=0) as client:
        assert len(client.infer("large", {"x": np.array([3e6])})["y"]) == 3_000_000


def test_shared_memory_that_cannot_grow_is_said_and_smaller_requests_are_answered(
    server: Callable[..., Any], confine: Callable[..., None], tmp_path: Path
) -> None:
    # The one limit that anonymous shared memory has for itself is that on the length of files.
    confine("ulimit -f 8192")  # blocks of 512 bytes
    running = server(models(tmp_path))
    with penstock.Client(running.http, retries=0) as client:
        for _ in range(2):
            with pytest.raises(Overloaded, match="shared memory"):
                client.infer("one", {"x": np.zeros(1_000_000)})
            with pytest.raises(Overloaded, match="shared memory"):
                client.infer("large", {"x": np.array([1e6])})
            assert len(client.infer("large", {"x": np.array([3e5])})["y"]) == 300_000
            assert pid_of(client, "one") > 0
    assert events(running, "worker_ended") == []


def test_without_home_and_folder_for_temporary_files_it_serves(
    server: Callable[..., Any], confine: Callable[..., None], tmp_path: Path
) -> None:
    confine("export HOME=/nonexistent TMPDIR=/nonexistent XDG_CACHE_HOME=/nonexistent")
    running = server(models(tmp_path))
    with penstock.Client(running.http, retries=0) as client:
        assert pid_of(client, "one") > 0


def test_more_open_files_than_the_soft_limit_are_taken_from_the_hard_one(
    server: Callable[..., Any], confine: Callable[..., None], tmp_path: Path
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 400:
        pytest.skip("needs a hard limit of 400 open files")
    confine("ulimit -S -n 120")
    running = server(models(tmp_path))
    with connections(running.http, 150), penstock.Client(running.http, retries=0) as client:
        assert pid_of(client, "one") > 0
    assert len(family(running.pid)) == 4
