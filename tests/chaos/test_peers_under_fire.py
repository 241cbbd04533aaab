"""The scenarios of `bench/fire.py`: they pass on Penstock, and they run on every other server that is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
PEERS = ("triton", "mlserver", "kserve")

pytestmark = pytest.mark.skipif(not (BENCH / "fire.py").exists(), reason="this copy has no bench/")


def fire(server: str, scenarios: str, seconds: float, file: Path) -> dict[str, dict[str, Any]]:
    """Findings by scenario."""
    command = [sys.executable, str(BENCH / "fire.py"), "--only", server, "--scenario", scenarios]
    command += ["--seconds", str(seconds), "--work-ms", "20", "--json", str(file)]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return {finding["scenario"]: finding for finding in json.loads(file.read_text())["findings"]}


def test_penstock_passes_the_scenarios_that_peers_are_put_through(tmp_path: Path) -> None:
    found = fire("penstock", "kill-worker", 0.8, tmp_path / "found.json")
    finding = found["kill-worker"]
    assert not finding["broken"], finding["examples"]
    assert not finding["trouble"]
    assert finding["outcomes"]["ok"] > 0
    assert any("SIGKILL to" in event and "none" not in event for event in finding["events"])


@pytest.mark.peers
@pytest.mark.timeout(180)
@pytest.mark.parametrize("peer", PEERS)
def test_a_worker_of_a_peer_is_killed_under_load(peer: str, tmp_path: Path) -> None:
    """That the scenario is carried out, and every request accounted for; not what the peer makes of it."""
    if not (BENCH / ".venvs" / peer).exists():
        pytest.skip(f"{peer} is not installed: python bench/run.py --install {peer}")
    found = fire(peer, "kill-worker", 2.0, tmp_path / "found.json")["kill-worker"]
    assert "did not start" not in str(found["trouble"]), found["trouble"]
    assert "not carried out" not in str(found["trouble"]), found["trouble"]
    assert found["outcomes"]["ok"] > 0
    assert "crossed" not in found["broken"], found["examples"]
    assert any("SIGKILL to" in event and "none" not in event for event in found["events"])
