"""F30: whatever of a server is killed, nothing of it is left, and it starts again on the same ports at once."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_processes import alive, until
from watched_processes import Held, family, held_by, named_shared_memory

import penstock
from penstock.core.errors import PenstockError

MODELS = """
import os, time
import penstock


@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"})
def quick(x):
    return {"y": x * 2}


@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"}, batch=False)
def busy(x):
    if x[0] > 0:
        while True:  # holds the interpreter lock most of the time, and never returns
            pass
    return {"y": x}
"""


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def double(client: penstock.Client, x: float) -> float:
    return float(client.infer("quick", {"x": np.array([x], np.float64)}, timeout_s=10.0)["y"][0])


def victims(held: list[Held], which: str, choose: random.Random) -> list[int]:
    """Whom to kill, in what order: one kind of process, or any of them."""
    if which == "any":
        some = choose.sample(held, choose.randint(1, len(held)))
        return [one.pid for one in some if one.role != "core"] + [held[0].pid]
    return [one.pid for one in held if one.role.startswith(which)] + ([] if which == "core" else [held[0].pid])


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(["core", "any"], id="short"),
        pytest.param(
            ["core", "front", "worker", *["any"] * 30], id="30",
            marks=[pytest.mark.chaos, pytest.mark.timeout(600)],
        ),
    ],
)  # fmt: skip
def test_killed_server_leaves_nothing_and_starts_again_on_its_ports_at_once(
    server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: list[str]
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    (tmp_path / "models.py").write_text(MODELS)
    models = {
        "quick": {"path": f"{tmp_path}/models.py:quick", "workers": 2},
        "busy": {"path": f"{tmp_path}/models.py:busy", "workers": 1, "warm_up": False},
    }
    http_port, grpc_port = free_ports()
    choose = random.Random(1)
    for which in rounds:
        running = server(models, http_port=http_port, grpc_port=grpc_port, fronts=2)
        with penstock.Client(running.http, retries=0) as client:
            assert double(client, 3) == 6
            with pytest.raises(PenstockError):  # a worker is in user code that never returns
                client.infer("busy", {"x": np.array([1.0])}, timeout_s=0.3)
            held = held_by(running.pid)
            assert sorted(one.role.split("@")[0] for one in held) == [
                "core", "front", "worker busy", "worker quick", "worker quick",
            ]  # fmt: skip
            for pid in victims(held, which, choose):
                os.kill(pid, signal.SIGKILL)
        running.process.wait(10)
        until(lambda held=held: not alive(one.pid for one in held), 20, "all of it ends")
        assert named_shared_memory() == set()
    assert list(temporary.iterdir()) == []


def roles(pid: int) -> Counter[str]:
    return Counter(one.role.split(" ")[0] for one in held_by(pid))


def test_workers_and_fronts_end_with_a_core_that_is_killed_while_it_starts_them(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("import time\ntime.sleep(1)\n" + MODELS)
    for wanted, count in (("worker", 1), ("worker", 2), ("front", 1)):  # one loads first, then the others start
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock.cli", "serve", f"{tmp_path}/models.py:quick", "--http-port", "0",
             "--grpc-port", "0", "--fronts", "2", "--workers", "2"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until(lambda wanted=wanted, count=count, process=process: roles(process.pid)[wanted] >= count, 20, wanted)
            started = family(process.pid)
        finally:
            process.kill()
            process.wait()
        until(lambda started=started: not alive(started), 20, "what it started ends")


@pytest.mark.parametrize("option", ["http_port", "grpc_port"])
def test_taken_port_is_said_by_its_option_and_ends_the_start(tmp_path: Path, option: str) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"http_port": 0, "grpc_port": 0, option: port}
        flags = [word for name, number in ports.items() for word in (f"--{name.replace('_', '-')}", str(number))]
        ended = subprocess.run(
            [sys.executable, "-m", "penstock.cli", "serve", f"{tmp_path}/models.py:quick", *flags],
            capture_output=True, text=True, timeout=50,
        )  # fmt: skip
    assert ended.returncode != 0
    assert f"cannot listen on {option} = {port}" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
