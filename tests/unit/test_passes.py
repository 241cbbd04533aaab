"""The two passes of the tests: each test runs once, in its pass, and a failure of either fails the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))

from passes import closing_line, counts_of  # noqa: E402  # it lies among the tools


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        ("....\n4 passed in 0.12s\n", {"passed": 4}),
        (
            "==== 2 failed, 6046 passed, 1 skipped in 1319.43s (0:21:59) ====\n",
            {"failed": 2, "passed": 6046, "skipped": 1},
        ),
        ("1 passed in 1s of talk\n3 passed, 2 warnings, 1 error in 5.00s\n", {"passed": 3, "warning": 2, "error": 1}),
        ("no tests ran in 0.01s\n", {}),
        ("2 deselected in 0.01s\n", {"deselected": 2}),
        ("INTERNALERROR> gone\n", {}),
    ],
)
def test_counts_are_those_of_the_closing_line(output: str, counts: dict[str, int]) -> None:
    assert counts_of(output) == Counter(counts)


def test_the_closing_line_is_in_pytests_form() -> None:
    counts = Counter(passed=6046, failed=2, error=2, warning=1, deselected=7)
    assert closing_line(counts, 725.5) == "2 failed, 6046 passed, 1 warning, 2 errors in 725.50s (0:12:05)"
    assert closing_line(Counter(), 0.5) == "no tests ran in 0.50s"


@pytest.mark.parametrize(("failing", "status"), [("none", 0), ("beside", 1), ("alone", 1)])
def test_each_test_runs_once_and_a_failure_of_either_pass_fails_the_whole(
    tmp_path: Path, failing: str, status: int
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    alone: by itself\n")
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(
            "import pytest\n"
            f"def test_beside(): assert {failing!r} != 'beside'\n"
            f"@pytest.mark.alone\ndef test_alone(): assert {failing!r} != 'alone'\n"
        )
    # Without this environment's plugins: loading them all takes longer than the tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "passes.py", "-p", "xdist.plugin", "-p", "no:cacheprovider"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == status, done.stdout
    assert lines[-1].startswith("4 passed in" if failing == "none" else "2 failed, 2 passed in")
    bad = {line.split(" - ")[0] for line in lines[-3:-1]}
    if failing != "none":
        assert bad == {f"FAILED test_{name}.py::test_{failing}" for name in ("one", "two")}
