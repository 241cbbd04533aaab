"""What all tests share: real servers, flags that switch slow tests on (one per marker), and the figures of promises."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from language_weights import llmecho, minilm, smollm2
from running_fleet import fleet, shared_fleet
from running_postgres import postgres, postgres_folder
from running_server import server, shared_server

__all__ = [  # fixtures
    "fleet", "llmecho", "minilm", "postgres", "postgres_folder", "server", "shared_fleet", "shared_server", "smollm2",
]  # fmt: skip

OPT_IN = {
    "chaos": "the long form of faults, load and switches; minutes each",
    "soak": "hours of traffic, looking for what grows",
    "fuzz": "coverage-guided fuzzing of every decoder",
    "browsers": "pages in a real browser, where Chromium and Playwright are installed",
    "engines": "the engines of language models that need gigabytes of packages, where they are installed",
    "peers": "the same faults against other model servers, where they are installed",
}
# Addresses, and gzip's heads with the time in them: other ones in each process.
VARIES = re.compile(r" at 0x[0-9a-f]{6}|\\x1f\\x8b")
Figure = Callable[..., None]
FIGURES = pytest.StashKey[list[dict[str, object]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    for marker, what in OPT_IN.items():
        parser.addoption(f"--{marker}", action="store_true", help=f"also run the tests marked {marker}: {what}")
    parser.addoption("--figures", type=Path, metavar="FILE", help="write the measured figures of promises into FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if VARIES.search(item.nodeid):
            raise pytest.UsageError(
                f"{item.nodeid}: give its cases ids; processes that share the tests must agree on them"
            )
    for marker in OPT_IN:
        if config.getoption(f"--{marker}"):
            continue
        for item in items:
            if item.get_closest_marker(marker) is not None:  # not its keywords: those hold folder names too
                item.add_marker(pytest.mark.skip(reason=f"needs --{marker}"))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Writes down what a test measured: `figure("P2a", "death of a worker is seen after", 12.3, "ms", goal="≤ 100 ms")`.

    A promise, a name and a unit identify a figure; a later one replaces it in the file. The test asserts by itself.
    """
    long = any(request.node.get_closest_marker(marker) is not None for marker in OPT_IN)

    def write_down(promise: str, name: str, value: float, unit: str, *, goal: str = "") -> None:
        measured = {"promise": promise, "name": name, "value": value, "unit": unit, "goal": goal}
        test = request.node.nodeid.split("::", 1)[0]
        request.config.stash[FIGURES].append({**measured, "form": "long" if long else "short", "test": test})

    return write_down


def pytest_sessionfinish(session: pytest.Session) -> None:
    file: Path | None = session.config.getoption("--figures")
    if file is None:
        return
    known = json.loads(file.read_text()) if file.exists() else []
    merged = {(item["promise"], item["name"], item["unit"]): item for item in [*known, *session.config.stash[FIGURES]]}
    ordered = sorted(merged.values(), key=lambda item: (str(item["promise"]), str(item["name"])))
    file.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
