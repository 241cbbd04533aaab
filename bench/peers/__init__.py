"""The servers that are measured: one folder each, with `peer.py` (the contract below) and what runs in its environment.

What a `peer.py` owes: an object `peer` with

1. `name`, and `packages`: what pip installs into the peer's own environment, `bench/.venvs/<name>`;
2. `distribution`: the package whose version stands in the result;
3. `variants`: name → its settings in words. The best settings one would sensibly choose, each as a variant;
4. `calls(variant, workload)`: route (`json`, `binary`, `grpc`) → how to ask for the workload (`digits` or `conv`); a
   route that a server does not have is left out;
5. `start(variant, place)`: the command of a server for `place.workload`, listening on loopback only, with ONNX Runtime
   on one thread in each of two workers. It may write into `place.folder`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from harness.servers import Place, Start
from harness.wire import Call

HERE = Path(__file__).parent


class Peer(Protocol):
    """One server program with its variants."""

    name: str
    packages: tuple[str, ...]
    distribution: str
    variants: Mapping[str, str]

    def calls(self, variant: str, workload: str) -> Mapping[str, Call]: ...

    def start(self, variant: str, place: Place) -> Start: ...


def all_peers() -> dict[str, Peer]:
    """Every peer by name, found by listing the folder."""
    names = sorted(each.parent.name for each in HERE.glob("*/peer.py"))
    return {name: importlib.import_module(f"peers.{name}.peer").peer for name in names}
