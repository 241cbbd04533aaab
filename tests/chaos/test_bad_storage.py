"""F17: storage that fails, hangs, fills or goes away, beneath models and logs. What serves goes on serving."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confined import confine, need_mounts
from libc_faults import Faults
from running_server import PYTHON, write_config
from versions_under_load import add, ask, eventually, onnx_bytes, traffic_to

import penstock

__all__ = ["confine"]  # a fixture
Factory = Callable[..., Any]


def reason(running: Any, name: str, version: str = "1") -> str:
    with penstock.Client(running.http) as client:
        return next((s.reason for s in client.index() if (s.name, s.version) == (name, version)), "")


def get(url: str) -> float:
    """Seconds until the answer."""
    began = time.monotonic()
    urllib.request.urlopen(url, timeout=30).read()
    return time.monotonic() - began


@pytest.mark.parametrize(
    "error",
    [errno.EIO, *(pytest.param(each, marks=pytest.mark.chaos) for each in (errno.EACCES, errno.ESTALE, errno.EMFILE))],
)
def test_files_that_cannot_be_read_take_nothing_away_and_come_back(
    server: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    store = tmp_path / "store"
    faults = Faults(tmp_path, store, monkeypatch)
    add(store / "m", 1)
    running = server({}, serve=[str(store)], poll_s=0.1)
    with traffic_to(running, "m") as traffic:
        faults.set(error=error)
        add(store / "m", 3)
        assert running.log is not None
        log = running.log
        eventually(lambda: os.strerror(error) in log.read_text())
        eventually(lambda: os.strerror(error) in reason(running, "m"))
        lines = log.read_text().count(os.strerror(error))
        time.sleep(0.5)  # five more polls: told once, not each time
        assert log.read_text().count(os.strerror(error)) <= lines + 2
        assert {version for _, version in traffic.answers} == {"1"}
        faults.set()
        eventually(lambda: ask(running, "m")[:2] == ("3", 3))
    assert "Traceback" not in log.read_text()
    assert running.stop() == 0


def test_storage_that_hangs_blocks_neither_answers_nor_the_stop(
    server: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    faults = Faults(tmp_path, store, monkeypatch)
    add(store / "m", 1)
    running = server({}, serve=[str(store)], poll_s=0.1, grace_s=5.0)
    with traffic_to(running, "m") as traffic:
        faults.set(hang=True)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            assert get(f"{running.http}/v2/health/ready") < 5.0
            assert get(f"{running.http}/metrics") < 5.0
            get(f"{running.http}/v2/models/m")
        seen = sum(traffic.answers.values())
        eventually(lambda: sum(traffic.answers.values()) > seen + 20)
    began = time.monotonic()
    assert running.stop(timeout_s=60.0) == 0  # the thread that hangs is left behind
    assert time.monotonic() - began < 20.0


def test_a_load_that_hangs_on_its_files_ends_at_its_time_and_others_load_meanwhile(
    server: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad"
    faults = Faults(tmp_path, bad, monkeypatch)
    add(tmp_path / "good", 1)
    add(bad, 1)
    more = f"open({str(bad / 'x')!r})"  # on the storage that hangs
    add(tmp_path / "other", 1)
    running = server(
        {"good": str(tmp_path / "good"), "bad": {"path": str(tmp_path / "other"), "load_timeout_s": 3.0}}, poll_s=0.1
    )
    with traffic_to(running, "good", "bad"):
        faults.set(hang=True)
        add(tmp_path / "other", 3, more=more)
        add(tmp_path / "good", 3)
        eventually(lambda: ask(running, "good")[:2] == ("3", 3))
        eventually(lambda: "load_timeout_s" in reason(running, "bad", "3"))
        assert ask(running, "bad")[:2] == ("1", 1)


def test_models_that_vanish_under_a_server_go_on_serving(server: Factory, tmp_path: Path) -> None:
    """The folder itself, and all above it: as when a volume is taken away."""
    store = tmp_path / "volume" / "models"
    add(store / "m", 1)
    running = server({}, serve=[str(store)], poll_s=0.1)
    with traffic_to(running, "m"):
        shutil.rmtree(tmp_path / "volume")
        eventually(lambda: "nothing at" in reason(running, "m"))
        assert ask(running, "m")[:2] == ("1", 1)
    add(store / "m", 1)
    add(store / "m", 3)
    eventually(lambda: ask(running, "m")[:2] == ("3", 3))


@pytest.fixture
def small_disk(tmp_path: Path, confine: Callable[..., None]) -> Path:
    """Where a server of this test finds a file system of one megabyte. It is mounted for the server alone, and so gone
    with it, however the test ends."""
    need_mounts()
    place = tmp_path / "small"
    place.mkdir()
    confine(f"mount -t tmpfs -o size=1m tmpfs {place}", mounts=True)
    return place


def seen_by(running: Any, path: Path) -> Path:
    """The way to what a server with mounts of its own has at `path`."""
    return Path(f"/proc/{running.pid}/root{path}")


def load(running: Any, name: str, content: bytes) -> tuple[int, str]:
    """(status, body) of a load call that brings its own file."""
    file = base64.b64encode(content).decode()
    body = json.dumps(
        {"parameters": {"config": json.dumps({"max_batch_size": 16}), "file:1/model.onnx": file}}
    ).encode()
    request = urllib.request.Request(f"{running.http}/v2/repository/models/{name}/load", body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_full_disk_fails_the_load_that_needs_it_and_nothing_else(
    server: Factory, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path / "m", 1)
    monkeypatch.setenv("TMPDIR", str(small_disk))
    running = server({"m": str(tmp_path / "m")}, model_control="explicit", load_models=["m"])
    with traffic_to(running, "m"):
        status, text = load(running, "sent", onnx_bytes(7, weights=1 << 19))  # two megabytes
        assert status >= 400
        assert "No space left on device" in text
        assert os.path.ismount(seen_by(running, small_disk))
        assert list(seen_by(running, small_disk).glob("penstock-load-*")) == []  # no half of it is left
        assert load(running, "sent", onnx_bytes(7))[0] == 200
    assert ask(running, "sent")[:2] == ("1", 7)


def test_a_read_only_disk_is_enough_to_serve_from(
    server: Factory, tmp_path: Path, small_disk: Path, confine: Callable[..., None]
) -> None:
    add(tmp_path / "made" / "m", 1)
    confine(
        f"mount -t tmpfs -o size=1m tmpfs {small_disk}",
        f"cp -a {tmp_path}/made/. {small_disk}",
        f"mount -o remount,ro {small_disk}",
        mounts=True,
    )
    running = server({}, serve=[str(small_disk)], poll_s=0.1)
    with pytest.raises(OSError, match="Read-only"):
        add(seen_by(running, small_disk) / "m", 3)
    with traffic_to(running, "m"):
        assert ask(running, "m")[:2] == ("1", 1)
    remount = ["nsenter", "--mount", "--target", str(running.pid), "mount", "-o", "remount,rw", str(small_disk)]
    subprocess.run(remount, check=True, capture_output=True, timeout=20)
    add(seen_by(running, small_disk) / "m", 3)
    eventually(lambda: ask(running, "m")[:2] == ("3", 3))


@contextlib.contextmanager
def started(folder: Path, model: Path, stdout: int, stderr: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server with these ends of its output, and its address."""
    port = _free_port()
    write_config(folder / "penstock.toml", {"m": str(model)}, {"http_port": port, "grpc": False, "poll_s": 0.1})
    process = subprocess.Popen(
        [PYTHON, "-m", "penstock.cli", "serve", "--config", str(folder / "penstock.toml")],
        stdout=stdout, stderr=stderr, cwd=folder,
    )  # fmt: skip
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ready(url: str) -> bool:
    try:
        get(f"{url}/v2/health/ready")
    except (urllib.error.URLError, OSError):
        return False
    return True


def make_noise(url: str, lines: int) -> None:
    """Has the server log an error for each of `lines` requests."""
    for _ in range(lines):
        with contextlib.suppress(urllib.error.HTTPError):
            body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0, 0]}]})
            request = urllib.request.Request(f"{url}/v2/models/m/infer", body.encode(), method="POST")
            urllib.request.urlopen(request, timeout=20).read()


NOISY = "print('x' * 3000, file=sys.stderr)"


@pytest.mark.parametrize("how", ["full", "closed", "stalled"])
def test_logs_that_nobody_takes_stop_no_server(tmp_path: Path, how: str) -> None:
    """Standard output and error on a full disk; in a pipe whose reader died; in one whose reader stopped reading."""
    folder = tmp_path / "m"
    add(folder, 1, more="old = Model.predict\nModel.predict = lambda self, x: (" + NOISY + ", old(self, x))[1]")
    read_end, write_end = os.pipe()
    target = os.open("/dev/full", os.O_WRONLY) if how == "full" else write_end
    if how == "closed":
        os.close(read_end)
    with started(tmp_path, folder, target, target) as (process, url):
        os.close(write_end)
        eventually(lambda: ready(url) or process.poll() is not None)
        assert process.poll() is None
        make_noise(url, 60)  # more than a pipe holds
        add(folder, 3)
        began = time.monotonic()
        eventually(lambda: _version(url) == "3")
        assert get(f"{url}/metrics") < 10.0
        process.terminate()
        assert process.wait(30) == 0
        assert time.monotonic() - began < 60
    if how == "stalled":
        os.close(read_end)
    if how == "full":
        os.close(target)


def _version(url: str) -> str:
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0, 0]}]})
    request = urllib.request.Request(f"{url}/v2/models/m/infer", body.encode(), method="POST")
    return str(json.loads(urllib.request.urlopen(request, timeout=20).read())["model_version"])
