"""vLLM computes in processes of its own, which outlive a worker that is killed: this ends them with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

# Reads until the worker's end of the pipe closes, which the kernel does however the worker ends.
_WATCH = """
import os, signal, sys
kept = []
for pid in map(int, sys.argv[1:]):
    try: kept.append(os.pidfd_open(pid))
    except OSError: pass
sys.stdout.write("1"); sys.stdout.close()
sys.stdin.read()
for fd in kept:
    try: signal.pidfd_send_signal(fd, signal.SIGKILL)
    except OSError: pass
"""


def end_with_me(pids: Sequence[int]) -> subprocess.Popen[bytes]:
    """A watcher that kills these processes once this one is gone. Whoever owns it keeps it, and closes its `stdin`."""
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCH, *map(str, pids)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert watcher.stdout is not None
    watcher.stdout.read(1)  # it holds them now: ids that are used again mean nobody else
    return watcher
