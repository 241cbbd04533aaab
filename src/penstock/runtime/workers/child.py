"""The worker process: loads one servable and runs batches of it, one after the other, until it is told to stop.

Theory of operation. The main thread receives a message, runs user code and answers; nothing else runs beside user
code but the pulse thread, whose counter in shared memory tells the front that this process is scheduled and that the
interpreter lock moves. A servable that is asyncio code is run by `child_async` instead, on this process's own loop.
The process ends when it is told to, when the front's end of the socket goes, and by the kernel's hand when the front
dies while user code runs. Signals of a terminal or a service manager are the front's business and are ignored here.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import inspect
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import plugins
from penstock.core.errors import DeadlineExceeded, LoadError, PenstockError
from penstock.core.servable import Adapter, Borrower, Servable, StreamingServable, Tensors
from penstock.runtime.workers import answers, frame
from penstock.runtime.workers.calling import Calling
from penstock.runtime.workers.channel import Channel, Received
from penstock.runtime.workers.pulse import Pulse
from penstock.runtime.workers.window import WINDOW

if TYPE_CHECKING:
    import asyncio


_PR_SET_PDEATHSIG = 1
_ADAPTERS = "penstock.runtime.adapters"
_END = object()
# Thousandths of all memory that this process seems to hold beyond what it does. Source: proc_pid_oom_score_adj(5).
_OOM_SCORE, _MOST_OOM_SCORE = 500, 1000


def main(doorbell: int, pulse: int, parent: int) -> None:
    """Runs the worker, and ends the process. The arguments are inherited descriptors and the front's process id."""
    _die_with(parent)
    _offer_to_the_kernel()
    # Handlers instead of SIG_IGN: what user code starts gets the default back.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    faulthandler.enable(all_threads=False)  # a crash: of the thread that crashed
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # a worker that is stuck: of all
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a pipe's default would hold lines back
    for fd in (doorbell, pulse):
        os.set_inheritable(fd, False)
    channel = Channel(socket.socket(fileno=doorbell), front=False)
    code = 1
    try:
        code = _serve(channel, Pulse(pulse, writable=True))
    except Exception:  # outermost: the front cannot be reached, or speaks another protocol
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # No interpreter shutdown: threads of user code or destructors of native libraries could hang or crash it.
        os._exit(code)


def _serve(channel: Channel, pulse: Pulse) -> int:
    first = channel.receive()
    if first is None or not isinstance(first.message, frame.Load):
        return 1
    spec = first.message.spec
    threading.Thread(target=_beat, args=(pulse, channel.fileno(), spec.heartbeat_s), daemon=True, name="pulse").start()
    try:
        servable = load(spec)
    except BaseException as error:  # user code's SystemExit too
        # An adapter's own LoadError says all there is to say; anything else is somebody's defect.
        trace = "" if isinstance(error, LoadError) else answers.trace(error)
        channel.send(frame.LoadFailed(answers.last_line(error), trace))
        return 1
    channel.send(frame.Loaded(servable.signature))
    if _is_async(servable):
        from penstock.runtime.workers import child_async  # asyncio takes time to import

        child_async.serve(channel, servable, pulse)
    else:
        Server(channel, servable, pulse).serve()
    servable.close()
    return 0


def load(spec: frame.LoadSpec) -> Servable:
    """The servable of `spec`, loaded by its adapter. Raises: LoadError, and whatever user code raises."""
    try:
        adapter = cast(Adapter, plugins.load(_ADAPTERS, spec.adapter))
    except PenstockError as error:
        raise LoadError(str(error)) from error
    return adapter.load(Path(spec.path), spec.context)


class Server:
    """Runs one batch or stream at a time, in the main thread."""

    def __init__(self, channel: Channel, servable: Servable, pulse: Pulse) -> None:
        self._channel = channel
        self._servable = servable
        self._pulse = pulse
        self._borrower = servable if isinstance(servable, Borrower) else None
        self._borrowing = False
        self._waiting: deque[Received] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve(self) -> None:
        """Returns when told to close, or when the front is gone."""
        while True:
            received = self._waiting.popleft() if self._waiting else self._channel.receive()
            if received is None or isinstance(received.message, frame.Close):
                return
            run = received.message
            if not isinstance(run, frame.Run):
                continue  # of a stream that has ended already
            self._channel.release(received.slot)
            calling = Calling(run)
            try:
                inputs = frame.unpack(run.tensors, received.payload, owned=False)
                if run.stream:
                    self._answer(run, received.slot, inputs)
                else:
                    self._predict(run, received.slot, inputs)
            # User code's SystemExit and KeyboardInterrupt fail the batch, not the worker.
            except BaseException as error:
                self._channel.send(failed(run.id, error), received.slot)
            finally:
                calling.done()
            inputs = {}
            del received

    def _predict(self, run: frame.Run, slot: int, inputs: Tensors) -> None:
        entered = time.monotonic()
        if entered > run.deadline:
            raise DeadlineExceeded("the deadline passed on the way to the worker")
        if self._borrower is not None and run.borrow is not self._borrowing:
            self._borrower.borrow(run.borrow)
            self._borrowing = run.borrow
        self._pulse.begin(run.id)
        returned: object = self._servable.predict(inputs, run.parameters)
        if inspect.isawaitable(returned):
            returned = self._await(returned)
        outputs = answers.checked(returned, self._servable.signature, run.rows)
        left = time.monotonic()
        payload = frame.pack((outputs,))
        self._channel.send(frame.Result(run.id, payload.heads, entered, left), slot, payload)

    def _answer(self, run: frame.Run, slot: int, inputs: Tensors) -> None:
        self._pulse.begin(run.id)
        if not isinstance(self._servable, StreamingServable):
            items: Iterator[object] = iter((self._servable.predict(inputs, run.parameters),))
        else:
            answer = self._servable.answer(inputs, run.parameters)
            items = self._drive(answer.__aiter__()) if hasattr(answer, "__aiter__") else iter(answer)
        flow = Flow()
        try:
            while not self._cancelled(run, flow, wait=False):
                if time.monotonic() > run.deadline:
                    raise DeadlineExceeded("the deadline passed in the middle of the stream")
                item = next(items, _END)
                if item is _END:
                    break
                if inspect.isawaitable(item):
                    item = self._await(item)
                payload = frame.pack((answers.checked(item, self._servable.signature, -1),))
                message = frame.Item(run.id, payload.heads)
                shared = self._channel.shares(message, payload)
                while not flow.may_send(shared):
                    if self._cancelled(run, flow, wait=True):
                        break
                else:
                    if not self._cancelled(run, flow, wait=False):
                        self._channel.send(message, slot, payload)
                        flow.sent(shared)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
        self._channel.send(frame.End(run.id), slot)

    def _cancelled(self, run: frame.Run, flow: Flow, *, wait: bool) -> bool:
        """Takes in what the front has said meanwhile; whether it wants no more of `run`."""
        while not flow.cancelled:
            try:
                received = self._channel.receive(wait=wait)
            except BlockingIOError:
                break
            message = received.message if received is not None else None
            if received is None or (isinstance(message, frame.Cancel) and message.id == run.id):
                flow.cancelled = True
            elif isinstance(message, frame.Credit) and message.id == run.id:
                flow.taken = max(flow.taken, message.taken)
            elif isinstance(message, (frame.Run, frame.Close)):
                self._waiting.append(received)
            wait = False
        return flow.cancelled

    def _drive(self, iterator: AsyncIterator[Tensors]) -> Iterator[object]:
        try:
            while True:
                try:
                    yield self._await(iterator.__anext__())
                except StopAsyncIteration:
                    return
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                self._await(close())

    def _await(self, awaitable: object) -> object:
        import asyncio

        if self._loop is None:
            self._loop = asyncio.new_event_loop()

        async def whole() -> object:
            return await cast("Awaitable[object]", awaitable)

        return self._loop.run_until_complete(whole())


class Flow:
    """How far a stream is, and how far its reader."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self.cancelled = False
        self.taken = 0
        self._sent = 0
        self._shared = 0  # the count of items sent when the shared memory was last written

    def may_send(self, shared: bool) -> bool:
        """Whether the window has room, and the shared memory's last item has been taken if it is needed again."""
        return self._sent - self.taken < self._window and not (shared and self._shared > self.taken)

    def sent(self, shared: bool) -> None:
        self._sent += 1
        if shared:
            self._shared = self._sent


def failed(run_id: int, error: BaseException) -> frame.Failed:
    """The message that tells the front of an exception."""
    blamed = answers.blame(error)
    own = isinstance(error, PenstockError)
    return frame.Failed(
        run_id, type(blamed).__name__, answers.last_line(blamed), "" if own else answers.trace(error),
        blamed.retry_after_s,
    )  # fmt: skip


def _is_async(servable: Servable) -> bool:
    answer = getattr(servable, "answer", None)
    return (
        servable.signature.concurrency > 1
        or inspect.iscoroutinefunction(servable.predict)
        or inspect.isasyncgenfunction(answer)
    )


def _die_with(parent: int) -> None:
    """Has the kernel kill this process when the front dies, even in the middle of native code."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def _offer_to_the_kernel() -> None:
    """Has the kernel, when memory runs out, take this process before the server: it can be replaced."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:
        now = int(file.read())
        file.write(str(min(_MOST_OOM_SCORE, now + _OOM_SCORE)))


def _beat(pulse: Pulse, doorbell: int, heartbeat_s: float) -> None:
    hang_up = select.poll()
    hang_up.register(doorbell, select.POLLRDHUP)
    while True:
        pulse.beat()
        if hang_up.poll(0):  # the front is gone, and the main thread may be in user code for ever
            os._exit(1)
        time.sleep(heartbeat_s)
