"""A worker process as the front sees it: an Executor with a process behind it.

Theory of operation. Everything here happens on the front's event loop and nothing blocks. The process is `loading`
until it says what it has loaded, then `ready`, then `stopping` when it was asked to end, and at last `gone`. However
it ends, the one place that notices is `_exited`: it takes in the answers that were still on the way, fails all that is
left with WorkerLost, reaps the process with all it started, closes what was shared, and calls whoever asked to know.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from penstock.core.errors import Internal, InvalidInput, LoadError, Overloaded, PenstockError, WorkerLost, rebuild
from penstock.core.messages import NO_DEADLINE, Parameter
from penstock.core.servable import Signature, Tensors
from penstock.core.trace import RequestTrace, leading
from penstock.runtime.workers import Batch, BatchResult, Done, frame
from penstock.runtime.workers.channel import Received
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.life import Life
from penstock.runtime.workers.link import Link
from penstock.runtime.workers.relay import Allowance
from penstock.runtime.workers.shortage import ended_while_loading
from penstock.runtime.workers.stream import Inbox, Stream
from penstock.runtime.workers.window import WINDOW, window_of

log = logging.getLogger("penstock.worker")

_MOST_SLOTS = 1024


@dataclass(slots=True)
class _Held:
    """One batch or stream that the process works on."""

    slot: int
    started: float
    deadline: float
    done: Done | None
    inbox: Inbox | None
    left: bool = False  # the reader of this stream went before its deadline
    shared: bool = False  # its items come through shared memory, so each must be taken before the next
    trace_id: str = ""  # of the first request that brought one


class WorkerProcess:
    """One worker process. Made by `start`; all methods belong to the loop it was started on."""

    signature: Signature

    def __init__(self, spec: LoadSpec, python: str) -> None:
        self.spec = spec
        self.device = spec.context.device
        self.pid = 0
        self.load_s = 0.0
        self.batches = 0
        self.answered = 0  # batches and streams that came to an end in user code
        self.silent = False  # set by who watches it: it does not seem to run, and gets nothing new
        self.state = "loading"
        self.cause = ""  # why it ended, for people
        self._stuck = False
        self._python = python
        self._told_to_close = False
        self._held: dict[int, _Held] = {}
        self._slots: list[int] = []
        self._ids = 0
        self._credit_every = WINDOW // 2
        self._pours = False  # its streams come in one message each time, so that another one is seldom there already
        self._exit_callbacks: list[Callable[[], None]] = []
        self._free_callbacks: list[Callable[[], None]] = []
        self._errors_logged = Allowance(per_s=5.0, burst=20.0)

    @classmethod
    async def start(
        cls, spec: LoadSpec, *, python: str = sys.executable, load_timeout_s: float = 300.0
    ) -> WorkerProcess:
        """A process that has loaded `spec` and is ready for batches.

        Raises:
            LoadError: the adapter's message; or how the process ended, with its last lines; or the time was up.
        """
        worker = cls(spec, python)
        began = time.monotonic()
        try:
            worker._launch()
        except OSError as error:
            raise LoadError(f"cannot start a worker process with {python}: {error.strerror}") from error
        try:
            worker._greet()
            async with asyncio.timeout(load_timeout_s):
                await worker._loaded
        except TimeoutError:
            await worker._end("the time to load was up")
            raise LoadError(f"did not load within {load_timeout_s:g} s{worker._life.last_lines()}") from None
        except BaseException:
            await worker._end("it could not be loaded")
            raise
        worker.load_s = time.monotonic() - began
        return worker

    @property
    def free_slots(self) -> int:
        return len(self._slots) if self.state == "ready" and not self.silent else 0

    @property
    def exited(self) -> bool:
        return self.state == "gone"

    @property
    def rss_bytes(self) -> int:
        """Resident memory; 0 when the process is gone."""
        return self._life.rss_bytes

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Has `callback` called once when the process is gone, however it ended."""
        if self.state == "gone":
            self._loop.call_soon(callback)
        else:
            self._exit_callbacks.append(callback)

    def on_free(self, callback: Callable[[], None]) -> None:
        """Has `callback` called each time that a stream gives its slot back (a batch's `done` says so itself)."""
        self._free_callbacks.append(callback)

    def run(self, batch: Batch, done: Done) -> int:
        """Sends a batch; `done` is called later. There must be a free slot. Gives back its number for `abandon`."""
        rows = batch.rows + batch.pad_rows if batch.joined else -1
        held = _Held(-1, time.monotonic(), batch.deadline, done, None)
        error = self._submit(held, batch.parts, batch.pad_rows, batch.parameters, rows, batch.borrow, batch.traces)
        if error is not None:
            self._loop.call_soon(done, error)
        return self._ids

    def abandon(self, number: int) -> None:
        """Has a coroutine cancelled that runs this batch. Code that is no coroutine runs to its end: its deadline, not
        the patience of its callers, is what it may be killed for."""
        if number in self._held:
            self._link.tell(frame.Cancel(number))

    def stream(
        self,
        inputs: Tensors,
        parameters: Mapping[str, Parameter],
        deadline: float = NO_DEADLINE,
        traces: tuple[RequestTrace, ...] = (),
    ) -> Stream:
        """The answers to one request. The slot is taken at once, and is free again when the model has stopped."""
        number = self._ids + 1
        inbox = Inbox(lambda taken: self._took(number, taken), lambda left: self._abandon(number, left))
        held = _Held(-1, time.monotonic(), deadline, None, inbox)
        error = self._submit(held, (inputs,), 0, parameters, -1, traces=traces)
        if error is not None:
            inbox.finish(error)
        return Stream(inbox)

    def silence_s(self, now: float) -> float:
        """How long the process has not been seen to run. Call it at least every two seconds: time in which nobody
        looked counts for no more than that, so that a front that was stopped itself does not blame its workers."""
        return self._life.silence_s(now)

    @property
    def holds(self) -> bool:
        """Whether it was given a batch or stream that it has not ended."""
        return bool(self._held)

    def overdue_s(self, now: float, allowed_s: float) -> float:
        """How far the process is beyond the deadline of what it works on, at most; 0 when it is not. Each batch and
        stream may take `allowed_s` whatever its deadline is: callers choose deadlines, and one who is in a hurry, or
        leaves, does not make a worker that computes a stuck one."""
        return max((now - max(held.deadline, held.started + allowed_s) for held in self._held.values()), default=0.0)

    def left_s(self, now: float, allowed_s: float) -> float:
        """How long it may still work, by the deadlines of what it holds, and `allowed_s` as for `overdue_s`."""
        return max((max(held.deadline, held.started + allowed_s) - now for held in self._held.values()), default=0.0)

    @property
    def heartbeat_s(self) -> float:
        """How often it shows that it runs."""
        return self.spec.heartbeat_s

    @property
    def stopped(self) -> bool:
        """Whether somebody has stopped the process with a signal."""
        return self._life.stopped

    def states(self) -> list[str]:
        """What the kernel says that each of its threads does, for the log."""
        return self._life.states()

    def dump_stacks(self) -> None:
        """Has the process write the stacks of all its threads to the log, even if native code holds the interpreter."""
        self._life.dump_stacks()

    def kill_stuck(self) -> None:
        """Ends the process because it does not end what it works on, or is not seen to run."""
        self._stuck = True
        self.kill()

    def kill(self, reason: str = "it was stuck and had to be killed") -> None:
        """Ends the process and all it started, at once. What it holds fails with WorkerLost."""
        self._life.kill(reason)

    async def close(self, grace_s: float) -> None:
        """Returns when the process is gone: it finishes what it holds within `grace_s`, else it is killed."""
        if self.state == "gone":
            return
        self.state, self._told_to_close = "stopping", True
        self._link.tell(frame.Close())
        try:
            async with asyncio.timeout(max(0.0, grace_s)):
                await asyncio.shield(self._life.gone)
        except TimeoutError:
            await self._end("the time to finish was up")
        except BaseException:
            self.kill("closing was given up")
            raise

    # Sending

    def _submit(
        self,
        held: _Held,
        parts: Sequence[Tensors],
        pad_rows: int,
        parameters: Mapping[str, Parameter] | None,
        rows: int,
        borrow: bool = False,
        traces: tuple[RequestTrace, ...] = (),
    ) -> PenstockError | None:
        self._ids += 1
        if self.state != "ready":
            text = self._lost_message() if self.state == "gone" else "the worker is stopping"
            return WorkerLost(text, begun=False, died_at=time.monotonic())
        slot = held.slot = self._slots.pop()
        if (trace := leading(traces)) is not None:
            held.trace_id = trace.trace_id
        try:
            payload = frame.pack(parts, pad_rows)
            message = frame.Run(
                self._ids,
                payload.heads,
                frame.parameters_of(parameters),
                rows,
                held.deadline,
                held.inbox is not None,
                borrow,
                traces,
            )
            self._link.send(message, slot, payload)
        except PenstockError as error:
            self._slots.append(slot)
            return error
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has just died: `_exited` fails this with the rest
        except OSError as error:
            self._slots.append(slot)
            return Overloaded(f"no room to hand the batch to the worker: {error.strerror}")
        except Exception as error:  # inputs that are not what the batcher promises
            log.exception("batch_not_sent", extra=self._life.fields)
            self._slots.append(slot)
            return Internal(f"the batch could not be handed to the worker: {type(error).__name__}")
        self._held[self._ids] = held
        return None

    def _took(self, number: int, taken: int) -> None:
        held = self._held.get(number)
        if held is not None and (held.shared or taken % self._credit_every == 0):
            self._link.tell(frame.Credit(number, taken))

    def _abandon(self, number: int, left: bool) -> None:
        held = self._held.get(number)
        if held is not None:
            held.left = left
            held.deadline = min(held.deadline, time.monotonic())
            self._link.tell(frame.Cancel(number))

    # Receiving

    def _more_may_come(self) -> bool:
        if self._pours:
            return False
        return len(self._held) > 1 or any(held.inbox is not None for held in self._held.values())

    def _take(self, received: Received) -> None:
        message = received.message
        if isinstance(message, frame.Pieces):
            self._pours = True
            for number, count, piece in message.entries:
                held = self._held.get(number)
                if held is not None and held.inbox is not None and not held.inbox.ended:
                    held.inbox.pour(count, piece)
        elif isinstance(message, frame.Result):
            self._result(message, received)
        elif isinstance(message, frame.Item):
            held = self._held.get(message.id)
            if held is not None and held.inbox is not None and not held.inbox.ended:
                held.shared = held.shared or received.shared
                held.inbox.feed(frame.unpack(message.tensors, received.payload, owned=received.shared))
        elif isinstance(message, frame.End):
            self._finish(message.id, None)
        elif isinstance(message, frame.Failed):
            if message.trace:
                self._log_error(message)
            self._finish(message.id, rebuild(message.kind, message.message, message.retry_after_s))
        elif isinstance(message, frame.Loaded):
            self.signature = message.signature
            # Half of the window: the worker need never wait for a reader that keeps up.
            self._credit_every = window_of(message.signature) // 2
            self._slots = list(range(min(_MOST_SLOTS, max(1, message.signature.concurrency)) - 1, -1, -1))
            self.state = "ready" if self.state == "loading" else self.state
            if not self._loaded.done():
                self._loaded.set_result(None)
        elif isinstance(message, frame.LoadFailed):
            if message.trace:
                log.error("load_failed", extra={**self._life.fields, "trace": message.trace})
            if not self._loaded.done():
                self._loaded.set_exception(LoadError(message.message))
        else:
            raise Internal(f"a worker sent a {type(message).__name__}")

    def _result(self, message: frame.Result, received: Received) -> None:
        held = self._held.get(message.id)
        if held is None or held.done is None:
            raise Internal("a worker answered what it was not asked")
        outputs = frame.unpack(message.tensors, received.payload, owned=received.shared)
        del self._held[message.id]
        self._release(held.slot)
        self.batches += 1
        self.answered += 1
        self._call(
            held.done,
            BatchResult(
                outputs,
                max(0.0, message.entered - held.started),
                max(0.0, message.left - message.entered),
                max(0.0, time.monotonic() - message.left),
            ),
        )

    def _finish(self, number: int, error: PenstockError | None) -> None:
        held = self._held.pop(number, None)
        if held is None:
            raise Internal("a worker answered what it was not asked")
        self._release(held.slot)
        self.answered += 1
        if held.done is not None:
            self.batches += 1
            self._call(held.done, error or Internal("the worker ended a batch without an answer"))
        elif held.inbox is not None:
            held.inbox.finish(error)
            for callback in self._free_callbacks:
                self._loop.call_soon(callback)

    def _release(self, slot: int) -> None:
        self._slots.append(slot)
        self._link.release(slot)

    def _call(self, done: Done, outcome: BatchResult | PenstockError) -> None:
        try:
            done(outcome)
        except Exception:
            log.exception("done_callback_failed", extra=self._life.fields)

    def _log_error(self, message: frame.Failed) -> None:
        if self._errors_logged.take():
            skipped, self._errors_logged.refused = self._errors_logged.refused, 0
            fields = {**self._life.fields, "skipped": skipped, "trace": message.trace}
            if (held := self._held.get(message.id)) is not None and held.trace_id:
                fields["trace_id"] = held.trace_id
            log.error("model_error", extra=fields)

    # Beginning and end

    def _launch(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._life = Life(self.spec, self._python, self._exited)
        self.pid = self._life.pid
        self._link = Link(self._life.doorbell, self._take, self._hung_up, self._more_may_come)

    def _greet(self) -> None:
        """Tells the process what to load. Raises: LoadError."""
        try:
            self._link.send(frame.Load(self.spec))
        except (BrokenPipeError, ConnectionResetError):
            pass  # dead already: `_exited` says how
        except OSError as error:
            raise LoadError(f"no room to talk to a new worker process: {error.strerror}") from error
        except InvalidInput as error:
            raise LoadError(f"the model's options cannot be passed to a worker: {error}") from error

    def _hung_up(self, reason: str, broken: bool) -> None:
        if self.state == "ready":
            self.state = "stopping"
        if broken:
            self.kill(reason)
        self._life.hang_up(reason)

    def _exited(self) -> None:
        """The process is gone: everything ends here, in this order."""
        asked = self._told_to_close and self._life.exit_code == 0
        self.state, self.cause = "gone", self._life.cause
        self._link.drain()  # its last answers count
        self._link.close()
        if not asked:
            log.warning("worker_ended", extra={**self._life.fields, "cause": self.cause})
        held, self._held, self._slots = self._held, {}, []
        died_at, last = time.monotonic(), self._life.begun
        doubtful = self._life.by_somebody or sum(number <= last for number in held) > 1
        for number, one in held.items():
            error = WorkerLost(self._lost_message(), begun=number <= last, doubtful=doubtful, died_at=died_at)
            if one.done is not None:
                self._call(one.done, error)
            elif one.inbox is not None:
                one.inbox.finish(error)
                if not (one.left and self._stuck):  # a reader's leaving is not to be blamed on the inputs
                    one.inbox.lost(error)
        if not self._loaded.done():
            cause = f"{self.cause}{self._life.last_lines()}"
            self._loaded.set_exception(ended_while_loading(cause, opened=self._life.beaten))
        callbacks, self._exit_callbacks, self._free_callbacks = self._exit_callbacks, [], []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("exit_callback_failed", extra=self._life.fields)

    async def _end(self, reason: str) -> None:
        self.kill(reason)
        await asyncio.shield(self._life.gone)
        if self._loaded.done() and not self._loaded.cancelled():
            self._loaded.exception()  # seen: no warning about an exception nobody fetched

    def _lost_message(self) -> str:
        context = self.spec.context
        return f"the worker of model '{context.name}' version {context.version} was lost: {self.cause}"
