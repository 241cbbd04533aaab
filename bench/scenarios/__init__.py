"""The same faults against every server that speaks V2: what is done, and what is found.

`plans` are the scenarios, as data. `contestant` starts one server again and again, `carry` carries one scenario out on
it and gives a `finding`, `watch` looks at it from outside meanwhile, `bad_rows` sends requests that must fail. `tables`
show all findings.

A server takes part by a file `peers/NAME/fire.py` with an object `server`, whose contract is `Server`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

from harness.servers import Place, Start

PEERS = Path(__file__).parent.parent / "peers"
MODEL = "triple"


class Server(Protocol):
    """What a `fire.py` owes: one server program that serves a model `triple` over V2.

    The model takes `x` and gives `y`, FP32 of shape (n, 10), y = 3x. A batch takes WORK_S seconds, as the environment
    says; one with a negative number raises instead. Two workers; batches of at most 4 where the server batches.
    """

    settings: str  # how it is set up, in words
    deadlines: str  # which deadlines of callers it obeys, and where
    structure: str  # what a reader must know to read its findings

    def start(self, place: Place) -> Start:
        """Its command line, for `place`'s ports, on loopback only."""

    def is_worker(self, command_line: str) -> bool:
        """Whether a process of its family runs the model."""

    def metrics_url(self, place: Place) -> str | None:
        """Where its Prometheus counters are, when not at /metrics of its HTTP port."""


def all_servers() -> dict[str, Server]:
    """Every server by its folder's name, Penstock first."""
    names = sorted((each.parent.name for each in PEERS.glob("*/fire.py")), key=lambda name: (name != "penstock", name))
    return {name: importlib.import_module(f"peers.{name}.fire").server for name in names}


def without_v2() -> list[str]:
    """Peers of the benchmark that have no `fire.py`: servers with their own wire form only."""
    names = {each.parent.name for each in PEERS.glob("*/peer.py")} - {"limits"}
    return sorted(names - all_servers().keys())
