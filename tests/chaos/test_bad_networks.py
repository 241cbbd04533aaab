"""F19: the network between clients and a server loses, delays, cuts and resets. Slots come back, deadlines hold.

The client lives in a network namespace of its own, at the other end of a pair of virtual Ethernet devices.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from versions_under_load import add, ask, eventually

Factory = Callable[..., Any]

# Run beyond the bad network: one request after another; prints what came of each.
CALLER = """
import json, sys, threading, time
import numpy as np, penstock
from penstock.core.errors import PenstockError

url, name, count, timeout_s, together = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]

def ask(client):
    began = time.monotonic()
    try:
        result = client.infer(name, {"x": np.ones((1, 2), "f4")})
        said = "ok" if float(result["version"][0, 0]) == float(result.version) else "mixed up"
    except PenstockError as error:
        said = type(error).__name__
    sys.stdout.write(json.dumps([said, time.monotonic() - began]) + "\\n")  # in one call: whole lines

with penstock.Client(url, retries=0, timeout_s=timeout_s) as client:
    threads = [threading.Thread(target=ask, args=(client,)) for _ in range(count)]
    for thread in threads:
        thread.start()
        if together == "no":
            thread.join()
    for thread in threads:
        thread.join()
"""


class Network:
    """The far side. The server's address is `near`; `far` begins a command there.

    Its namespace has no name and ends with the processes in it, and the pair of devices with it. The first of them waits
    for the end of a pipe that this process holds: nothing is left when the tests are killed.
    """

    def __init__(self, number: int) -> None:
        mark = uuid.uuid4().hex[:6]
        self.device, self._peer = f"pn{mark}", f"pf{mark}"
        self.near, self._other = f"10.213.{number}.1", f"10.213.{number}.2"
        self.far: list[str] = []
        self._first: subprocess.Popen[str] | None = None
        self._callers: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        self._first = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo made && read end"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._first.stdout is not None
        if (said := self._first.stdout.readline()) != "made\n":
            raise OSError(said)
        self.far = ["nsenter", "--net", "--target", str(self._first.pid)]
        pid = str(self._first.pid)
        _run("ip", "link", "add", self.device, "type", "veth", "peer", "name", self._peer, "netns", pid)
        _run("ip", "addr", "add", f"{self.near}/24", "dev", self.device)
        _run("ip", "link", "set", self.device, "up")
        _run(*self.far, "ip", "addr", "add", f"{self._other}/24", "dev", self._peer)
        _run(*self.far, "ip", "link", "set", self._peer, "up")

    def worsen(self, *how: str) -> None:
        """Both directions, as `tc netem` has it: `delay 50ms 20ms loss 3%`. Skips where the kernel has no netem."""
        probe = ["tc", "qdisc", "replace", "dev", self.device, "root", "netem", "delay", "0ms"]
        if shutil.which("tc") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
            pytest.skip("needs the kernel's netem, to lose and delay packets")
        _run("tc", "qdisc", "replace", "dev", self.device, "root", "netem", *how)
        _run(*self.far, "tc", "qdisc", "replace", "dev", self._peer, "root", "netem", *how)

    def cut(self, whether: bool) -> None:
        """Nothing passes any more, and nobody is told."""
        _run(*self.far, "ip", "link", "set", self._peer, "down" if whether else "up")

    def call(self, *command: str) -> subprocess.Popen[str]:
        """Starts a command on the far side, which is ended with the network."""
        caller = subprocess.Popen([*self.far, *command], stdout=subprocess.PIPE, text=True)
        self._callers.append(caller)
        return caller

    def stop(self) -> None:
        for process in [*self._callers, self._first]:
            if process is not None:
                process.kill()
                process.communicate()
        subprocess.run(["ip", "link", "del", self.device], capture_output=True, check=False)  # at once, not soon


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and ip to make a network of its own")
    made = Network(os.getpid() % 200 + 20)
    try:
        made.start()
    except (subprocess.CalledProcessError, OSError) as error:
        made.stop()
        why = error.stderr.decode() if isinstance(error, subprocess.CalledProcessError) else str(error)
        pytest.skip(f"cannot make a network here: {why[:200]}")
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def start(server: Factory, tmp_path: Path, network: Network) -> Callable[..., Any]:
    def begin(**options: object) -> Any:
        add(tmp_path / "m", 1)
        add(tmp_path / "slow", 1, wait_s=1.0)
        running = server(
            {
                "m": str(tmp_path / "m"),
                "slow": {"path": str(tmp_path / "slow"), "warm_up": False, "batch": False, "max_queue": 64},
            },
            host=network.near, allow_anonymous=True, **options,
        )  # fmt: skip
        return running

    return begin


def call(
    network: Network, running: Any, name: str, count: int, timeout_s: float, together: str = "no"
) -> subprocess.Popen[str]:
    return network.call(sys.executable, "-c", CALLER, running.http, name, str(count), str(timeout_s), together)


def outcomes(process: subprocess.Popen[str], seconds: float = 50.0) -> list[tuple[str, float]]:
    text, _ = process.communicate(timeout=seconds)
    return [(said, took_s) for said, took_s in map(json.loads, text.splitlines())]


@pytest.mark.parametrize("requests", [8, pytest.param(300, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])])
def test_loss_and_delay_make_answers_late_and_not_wrong(
    start: Callable[..., Any], network: Network, requests: int
) -> None:
    running = start()
    network.worsen("delay", "20ms", "10ms", "loss", "3%")
    said = outcomes(call(network, running, "m", requests, 20.0), 250.0)
    assert [what for what, _ in said] == ["ok"] * requests
    assert min(took_s for _, took_s in said) > 0.015  # the network was as bad as was asked for


def test_a_partition_in_the_middle_of_requests_gives_their_places_back(
    start: Callable[..., Any], network: Network
) -> None:
    """Forty callers wait for one worker, a second each, when the network is cut. Their deadline is five seconds: what is
    not begun then is dropped, and a caller from elsewhere is answered soon after."""
    running = start()
    callers = call(network, running, "slow", 40, 5.0, "yes")
    eventually(lambda: _waiting(running) >= 8, 30.0, "the callers do not arrive")
    network.cut(True)
    began = time.monotonic()
    eventually(lambda: _waiting(running) == 0, 20.0, "the places are not given back")
    assert time.monotonic() - began < 15.0
    assert ask(running, "slow")[:2] == ("1", 1)
    said = outcomes(callers)
    assert len(said) == 40
    for what, took_s in said:
        assert what != "mixed up"
        assert took_s < 20.0  # the client's own clock runs too
    network.cut(False)
    assert [what for what, _ in outcomes(call(network, running, "m", 3, 20.0))] == ["ok"] * 3


def _waiting(running: Any) -> int:
    """Requests of the slow model that wait or are computed."""
    text = urllib.request.urlopen(f"{running.http}/metrics", timeout=10).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("penstock_requests_in_flight") and '"slow"' in line]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))


def test_connections_that_are_reset_free_what_they_held(start: Callable[..., Any], network: Network) -> None:
    running = start()
    reset = (
        "import socket, struct, sys, json\n"
        "body = json.dumps({'inputs': [{'name': 'x', 'shape': [1, 2], 'datatype': 'FP32', 'data': [1, 1]}]}).encode()\n"
        "host, port = sys.argv[1].rsplit('/', 1)[1].split(':')\n"
        "for _ in range(20):\n"
        "    s = socket.create_connection((host, int(port)))\n"
        "    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n"
        "    head = 'POST /v2/models/slow/infer HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: %d\\r\\n\\r\\n' % len(body)\n"
        "    s.sendall(head.encode() + body)\n"
        "    s.close()\n"
    )
    subprocess.run([*network.far, sys.executable, "-c", reset, running.http], check=True, timeout=30)
    eventually(lambda: _waiting(running) == 0, 10.0, "the places are not given back")
    assert ask(running, "slow")[:2] == ("1", 1)
