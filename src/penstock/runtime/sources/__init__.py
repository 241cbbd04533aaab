"""Sources: say which models and versions should be loaded and where their files lie.

The whole wished state each time: what is left out goes away. Each module has `plug`, a callable that makes a Source
from the models' options. A Source is polled; `poll` may touch the disk or the network and so runs off the loop's
thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from penstock.runtime.options import ModelOptions


@dataclass(frozen=True, slots=True)
class WishedVersion:
    """One version that a source offers. `fingerprint` changes when its files do (names, sizes, times: not a hash)."""

    number: int
    path: Path
    fingerprint: str


@dataclass(frozen=True, slots=True)
class WishedModel:
    """One model that a source offers: its options and every version it has (the version policy chooses among them).

    With `trouble`, what lies there now cannot be offered, for this reason; the rest is as it was offered last: nothing
    (then `adapter` is empty too), or the versions that go on being served.
    """

    options: ModelOptions
    adapter: str  # resolved: empty only without versions
    versions: Mapping[int, WishedVersion]
    trouble: str = ""
    # Of a graph: the models that it asks in the same server, as far as they are there. Of a language model: its
    # fallback.
    needs: tuple[str, ...] = ()


class Source(Protocol):
    """Where models come from. `poll` raises `LoadError` or `InvalidInput` and keeps no half result."""

    def poll(self) -> Mapping[str, WishedModel]: ...
