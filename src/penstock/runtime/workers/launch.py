"""Starts the operating system process of a worker: a fresh interpreter, its descriptors, its environment, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from dataclasses import dataclass

from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.pulse import Pulse, pulse_fd

_FOR_USER_CODE = ("PENSTOCK_ENDPOINTS_URL", "PENSTOCK_ENDPOINTS_KEY")  # read by `penstock.endpoint`
_BOOT = "import sys; from penstock.runtime.workers.child import main; main(*map(int, sys.argv[1:4]))"


@dataclass(slots=True)
class Launched:
    """A running child and the front's ends of everything it shares with it. The owner closes each of them."""

    process: subprocess.Popen[bytes]
    doorbell: socket.socket
    pulse: Pulse
    stdout: int
    stderr: int
    pidfd: int | None


def launch(spec: LoadSpec, python: str) -> Launched:
    """A started child. To be called in a thread that lives as long as the front: the kernel ends the child with it.

    Raises:
        OSError: no such interpreter, or no more processes, descriptors or memory; nothing is left open then.
    """
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as childs:
        front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(front.close)
        childs.callback(back.close)
        stdout, stdout_end = _pipe(undo, childs)
        stderr, stderr_end = _pipe(undo, childs)
        page = pulse_fd()
        childs.callback(os.close, page)
        pulse = Pulse(page, writable=False)
        undo.callback(pulse.close)
        # -P: neither the working directory nor the script's folder may shadow a module.
        # The last argument only tells people who look at the process list what this is.
        process = subprocess.Popen(
            [python, "-P", "-c", _BOOT, str(back.fileno()), str(page), str(os.getpid()),
             f"penstock-worker:{spec.context.name}@{spec.context.version}"],
            stdin=subprocess.DEVNULL, stdout=stdout_end, stderr=stderr_end,
            pass_fds=(back.fileno(), page), env=_environment(spec),
            start_new_session=True,  # ^C in a terminal reaches the front only
        )  # fmt: skip
        undo.pop_all()
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:  # an old kernel, a strict sandbox, or no more descriptors
        pidfd = None
    return Launched(process, front, pulse, stdout, stderr, pidfd)


def _pipe(undo: contextlib.ExitStack, childs: contextlib.ExitStack) -> tuple[int, int]:
    read_end, write_end = os.pipe()
    undo.callback(os.close, read_end)
    childs.callback(os.close, write_end)
    return read_end, write_end


def _environment(spec: LoadSpec) -> dict[str, str]:
    # The server's own settings, keys among them, are none of user code's business; where it may call others is.
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_") or name in _FOR_USER_CODE
    }
    threads = str(max(1, spec.context.threads))
    env.update(OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    if spec.context.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""  # some frameworks take the whole device merely because they see one
    env.update(spec.env)
    return env


def cause_of(code: int | None) -> str:
    """Why a process ended, for people. `code` as subprocess has it: negative is a signal."""
    if code is None:
        return "it cannot be reached"
    if code >= 0:
        return f"it exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (by someone, or by the kernel for memory)" if -code == signal.SIGKILL else ""
    return f"it was killed by {name}{hint}"
