"""Runs the tests in two passes, and says in one closing line what both came to. `make test` runs it.

    python tools/passes.py [pytest's own options and paths]

First those that may run side by side, a file's tests in one process; then, one after another, those marked `alone`:
they measure time or memory, or take the machine for themselves. Exit status 0 only if no test of either pass failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# More would not help: what these tests start has processes of its own, and waits for little else than the cores.
MOST_PROCESSES = 4
PASSED, INTERRUPTED, NOTHING_TO_RUN = 0, 2, 5  # pytest's exit statuses
# In pytest's order. Without "deselected": what one pass leaves to the other is no news.
KINDS = ("failed", "passed", "skipped", "xfailed", "xpassed", "warning", "error")
_CLOSING = re.compile(r"^=*\s*((?:\d+ \w+(?:, )?)+|no tests ran) in [\d.]+s", re.MULTILINE)
_COUNT = re.compile(r"(\d+) (\w+?)s?\b")
_BAD = re.compile(r"^(?:FAILED|ERROR) .*", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def counts_of(output: str) -> Counter[str]:
    """How many tests of each kind pytest's closing line tells of; none where there is no such line."""
    closing = _CLOSING.findall(output)
    return Counter({kind: int(number) for number, kind in _COUNT.findall(closing[-1] if closing else "")})


def closing_line(counts: Counter[str], seconds: float) -> str:
    """All counts in the form of pytest's own closing line."""
    told = [(counts[kind], kind) for kind in KINDS if counts[kind]]
    plural = {"warning", "error"}
    words = ", ".join(f"{number} {kind}{'s' if kind in plural and number > 1 else ''}" for number, kind in told)
    whole = int(seconds)
    clock = f" ({whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02})" if seconds >= 60 else ""
    return f"{words or 'no tests ran'} in {seconds:.2f}s{clock}"


def run(arguments: Sequence[str]) -> tuple[int, str]:
    """Exit status and output of one pass. The output is passed on as it comes."""
    colour = ["--color=yes"] if sys.stdout.isatty() else []
    command = [sys.executable, "-m", "pytest", "-q", *colour, *arguments]
    kept = bytearray()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 65536):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            kept += piece
    return process.returncode, _COLOUR.sub("", kept.decode(errors="replace"))


def files_with(marker: str, arguments: Sequence[str]) -> list[str]:
    """The files that name the marker, unless paths are given: collecting all others for a few takes half a minute."""
    if any(Path(argument.partition("::")[0]).exists() for argument in arguments):
        return []
    return [str(path) for path in sorted(Path("tests").rglob("test_*.py")) if f"mark.{marker}" in path.read_text()]


def main(arguments: Sequence[str]) -> int:
    """The exit status for both passes."""
    began = time.monotonic()
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    # Without --dist, -n hands out single tests, and what a file's tests share would be started in each process.
    beside = ["-n", str(processes), "--dist", "loadfile"] if processes > 1 else []
    total: Counter[str] = Counter()
    statuses, bad_tests = [], []
    for chosen in (["-m", "not alone", *beside], ["-m", "alone", *files_with("alone", arguments)]):
        status, output = run([*chosen, *arguments])
        statuses.append(status)
        total += counts_of(output)
        bad_tests += _BAD.findall(output)
        if status == INTERRUPTED:
            break
    # The first pass told of its own long ago.
    print(*bad_tests, closing_line(total, time.monotonic() - began), sep="\n", flush=True)
    bad = [status for status in statuses if status not in (PASSED, NOTHING_TO_RUN)]
    return bad[0] if bad else min(statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
