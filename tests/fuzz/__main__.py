"""Coverage-guided fuzzing of every decoder, or of one: `python tests/fuzz [--seconds N] [NAME …]`.

Each target runs in a process of its own, because libFuzzer ends the process it runs in. What it found is kept in
`.fuzz/NAME` and is where the next run begins; an input that breaks a decoder is written beside it and printed.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
KEPT = FOLDER.parent.parent / ".fuzz"
MEMORY_MB, INPUT_S, INPUT_BYTES = 2048, 10, 16 << 10  # an input of 16 KiB may take no more memory, nor more time


def fuzz_here(name: str, arguments: list[str]) -> None:
    """Never returns: libFuzzer takes this process over."""
    import atheris

    with atheris.instrument_imports(include=["penstock"]):
        from targets import TARGETS
    target = TARGETS[name]
    logging.getLogger("penstock").addHandler(logging.NullHandler())  # nothing in a terminal for each bad input

    def one(data: bytes) -> None:
        target.run(data)

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def fuzz(name: str, seconds: float, kept: Path = KEPT) -> subprocess.CompletedProcess[str]:
    """The finished process of one target; its return code is 0 when nothing was found."""
    from targets import TARGETS

    corpus = kept / name
    corpus.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(TARGETS[name].seeds):
        (corpus / f"seed{index}").write_bytes(seed)
    options = {
        "max_total_time": round(seconds), "rss_limit_mb": MEMORY_MB, "timeout": INPUT_S, "max_len": INPUT_BYTES,
        "print_final_stats": 1, "artifact_prefix": f"{kept}/{name}-",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, str(FOLDER), "--here", name, str(corpus), *(f"-{key}={value}" for key, value in options.items())],
        capture_output=True, text=True, timeout=seconds + 300,
    )  # fmt: skip


def executions(output: str) -> int:
    """How many inputs a run has tried."""
    return next((int(line.split()[-1]) for line in output.splitlines() if "number_of_executed_units" in line), 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets; all when none is named")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each target (default 60)")
    given = parser.parse_args()
    from targets import TARGETS

    failed = 0
    for name in given.names or TARGETS:
        done = fuzz(name, given.seconds)
        failed += done.returncode != 0
        print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}, {executions(done.stderr)} inputs", flush=True)
        if done.returncode != 0:
            print(done.stdout[-2000:] + done.stderr[-6000:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parent))
    if sys.argv[1:2] == ["--here"]:
        fuzz_here(sys.argv[2], sys.argv[3:])
    sys.exit(main())
