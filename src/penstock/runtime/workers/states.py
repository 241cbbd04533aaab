"""What the kernel says about a process that does not move. Linux's /proc; elsewhere nothing is known."""

from __future__ import annotations

import os
from pathlib import Path

_MOST_THREADS = 32  # a log line is for people


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal (SIGSTOP); a debugger's stop is none."""
    return _state(Path(f"/proc/{pid}/stat")) == "T"


def of_threads(pid: int) -> list[str]:
    """One line for each thread: its name, its state as `ps` shows it, and the kernel function that it waits in."""
    folder = Path(f"/proc/{pid}/task")
    try:
        threads = sorted(map(int, os.listdir(folder)))
    except OSError:
        return []
    shown = [_line(folder / str(thread)) for thread in threads[:_MOST_THREADS]]
    return shown + ([f"and {len(threads) - len(shown)} more"] if len(threads) > len(shown) else [])


def _line(thread: Path) -> str:
    return f"{thread.name} {_text(thread / 'comm')} {_state(thread / 'stat')} {_text(thread / 'wchan')}".rstrip(" 0")


def _state(stat: Path) -> str:
    # The name before the state stands in brackets and may hold anything, brackets and blanks too: proc(5).
    return _text(stat).rpartition(")")[2].strip()[:1]


def _text(path: Path) -> str:
    try:
        # The kernel cuts a thread's name to 15 bytes, which may be in the middle of a character.
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
