"""The life of a worker's operating system process: its birth, its signs of life, its last words and its end.

Theory of operation. The kernel's process descriptor says within a millisecond that the process is dead, whatever of its
descriptors live on elsewhere. Only then is it reaped, here and nowhere else: until then its number cannot become
another process's, so signals to it and to its group are safe. A heartbeat counter in shared memory shows a process
that is alive but not running.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable

from penstock.runtime.workers import states
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.guard import Guard
from penstock.runtime.workers.launch import cause_of, launch
from penstock.runtime.workers.relay import Relay

log = logging.getLogger("penstock.worker")

_LONGEST_LOOK_S = 2.0  # between two looks the front itself may have been stopped; that is not the worker's silence
_EXIT_S = 1.0  # from hanging up to being gone
_POLL_S = 0.02  # how often to look where the kernel gives no process descriptor


class Life:
    """One process, from launch to reaping. `ended` is called once, when it is gone and `cause` says why."""

    def __init__(self, spec: LoadSpec, python: str, ended: Callable[[], None]) -> None:
        """Launches the process; `doorbell` is the caller's from then on. Raises: OSError."""
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._guard = Guard(spec.memory_bytes, self.kill)
        try:
            launched = launch(spec, python)
        except BaseException:
            self._guard.close()
            raise
        self._process = launched.process
        self._pulse = launched.pulse
        self._pidfd = launched.pidfd
        self.doorbell: socket.socket = launched.doorbell
        self.pid = launched.process.pid
        self.alive = True
        self.exit_code: int | None = None
        self.cause = ""
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.fields: dict[str, object] = {
            "model": spec.context.name, "version": spec.context.version, "pid": self.pid,
        }  # fmt: skip
        self._beats, self._silent_s, self._looked_at = 0, 0.0, time.monotonic()
        self.beaten = False  # once it is gone: whether it came so far as to open the model
        self.by_somebody = False  # once it is gone: killed, by nobody here and not for its memory
        self.begun = 0  # once it is gone: the last batch or stream that user code was given
        self._killed_because = ""
        self._timer: asyncio.TimerHandle | None = None
        self._relays = [
            Relay(launched.stdout, logging.INFO, self.fields | {"stream": "stdout"}),
            Relay(launched.stderr, logging.WARNING, self.fields | {"stream": "stderr"}),
        ]
        for relay in self._relays:
            self._loop.add_reader(relay.fd, self._relay, relay)
        self._guard.watch(self.pid, self.fields)
        if self._pidfd is not None:
            self._loop.add_reader(self._pidfd, self._dead)
        else:
            self._poll()

    @property
    def rss_bytes(self) -> int:
        """Resident memory; 0 when the process is gone."""
        try:
            with open(f"/proc/{self.pid}/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            return 0

    def silence_s(self, now: float) -> float:
        """How long the process has not been seen to run, in time that this front was looking."""
        if not self.alive:
            return 0.0
        self._guard.look()
        beats = self._pulse.beats
        if beats != self._beats:
            self._beats, self._silent_s = beats, 0.0
        else:
            self._silent_s += min(max(0.0, now - self._looked_at), _LONGEST_LOOK_S)
        self._looked_at = now
        return self._silent_s

    @property
    def stopped(self) -> bool:
        """Whether somebody has stopped the process with a signal."""
        return self.alive and states.is_stopped(self.pid)

    def states(self) -> list[str]:
        """What the kernel says that each of its threads does, for the log."""
        return states.of_threads(self.pid) if self.alive else []

    def dump_stacks(self) -> None:
        """Has the process write the stacks of its threads to the log, even if native code holds the interpreter; one
        that was stopped runs on for that."""
        if self.alive:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGUSR1)
                os.kill(self.pid, signal.SIGCONT)  # the signal before it is delivered first

    def kill(self, reason: str) -> None:
        """Ends the process and all it started, at once."""
        if self.alive:
            self._killed_because = self._killed_because or reason
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def hang_up(self, reason: str) -> None:
        """Its connection is of no more use. A process that is just dying needs no kill; any other gets one soon."""
        if self.alive and self._timer is None:
            self._timer = self._loop.call_later(_EXIT_S, self.kill, reason)

    def last_lines(self) -> str:
        """What it printed last, as the end of an error's message; "" if nothing."""
        lines = [line for relay in self._relays for line in relay.tail][-20:]
        return "; its last lines:\n" + "\n".join(lines) if lines else ""

    def _relay(self, relay: Relay) -> None:
        if relay.read() < 0:
            self._loop.remove_reader(relay.fd)

    def _poll(self) -> None:
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            self._dead()
        else:
            self._loop.call_later(_POLL_S, self._poll)

    def _dead(self) -> None:
        """The process is dead and not yet reaped."""
        with contextlib.suppress(OSError):  # what it started and left behind
            os.killpg(self.pid, signal.SIGKILL)
        self.exit_code = self._process.wait()
        self.alive = False
        for_memory = self._guard.verdict() if self.exit_code == -signal.SIGKILL else ""
        self.cause = self._killed_because or for_memory or cause_of(self.exit_code)
        self.by_somebody = self.exit_code == -signal.SIGKILL and not self._killed_because and not for_memory
        self._guard.close()
        if self._timer is not None:
            self._timer.cancel()
        for relay in self._relays:
            self._loop.remove_reader(relay.fd)
            relay.close()
        self.begun, self.beaten = self._pulse.begun, self._pulse.beats > 0
        self._pulse.close()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        try:
            self._ended()
        finally:
            self.gone.set_result(None)
