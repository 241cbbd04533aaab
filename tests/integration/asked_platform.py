"""A whole platform with deployments of digits: commands to it, and questions all the time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from running_fleet import RunningFleet, until

from penstock.client.fleet_status import Status

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
