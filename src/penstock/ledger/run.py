"""One run: learn the right answers, send what is due, break things, wait until all is quiet, judge."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Final

from penstock.client import Client
from penstock.client.made_up import make_up
from penstock.core.errors import Internal, InvalidInput, NotFound, NotReady
from penstock.core.tensor import datatype_of
from penstock.ledger import book, counters
from penstock.ledger.book import Entry, Event, Target
from penstock.ledger.checker import Violation, check
from penstock.ledger.faults import Fault, descendants, rss_bytes
from penstock.ledger.grpc import GrpcSender
from penstock.ledger.http import HttpSender
from penstock.ledger.payloads import Arrays, Payloads
from penstock.ledger.report import Memory, Report, percentile
from penstock.ledger.schedule import Plan, entries

Progress = Callable[[float, int, int], None]  # seconds since the run began, requests sent, requests ended
_LEARN_S: Final = 60.0
_WATCH_S: Final = 0.25
_QUIET_S: Final = 10.0
_PROGRESS_S: Final = 0.5
# So many requests are sent in a row when they are due together; then answers are read.
_IN_A_ROW: Final = 16


async def run(
    target: Target, plan: Plan, inputs: Sequence[Arrays] | None = None, progress: Progress | None = None
) -> Report:
    """Carries the plan out.

    Args:
        inputs: one mapping from input name to array for each payload; None makes them up from the model's metadata.

    Raises:
        InvalidInput: the model's answers cannot be told apart, or change from one time to the next.
        NotReady: the server cannot be reached before the run begins.
    """
    known = await prepare(target, plan, inputs)
    before = await asyncio.to_thread(counters.read, target)
    all_entries = list(entries(plan, len(known)))
    begun = time.monotonic()

    def clock() -> float:
        return time.monotonic() - begun

    senders = _Senders(target, plan, known, clock)
    events: list[Event] = []
    memory: list[Memory] = []
    failed: list[Event] = []
    beside = [asyncio.create_task(_break(fault, clock, events, failed)) for fault in plan.faults]
    watch = asyncio.create_task(_watch(plan.watch_pid, clock, memory))
    try:
        await _send_all(all_entries, senders, clock, progress)
        await asyncio.gather(*beside)
    finally:
        for task in (watch, *beside):
            task.cancel()
        await asyncio.gather(watch, *beside, return_exceptions=True)
        await senders.close()
    after = await _when_quiet(target, before)
    lags = sorted(clock() if entry.tried is None else entry.tried - entry.scheduled for entry in all_entries)
    report = Report(
        target,
        plan,
        all_entries,
        [],
        sorted(events, key=lambda event: event.at),
        known.told_apart,
        percentile(lags, 0.99),
        before,
        after,
        memory,
    )
    report.violations += check(all_entries, plan, before, after, on_time=report.on_time)
    if failed:
        report.violations.append(Violation("harmless", len(failed), failed[0].what))
    return report


async def capacity(
    target: Target, plan: Plan, inputs: Sequence[Arrays] | None = None, seconds: float = 3.0, at_once: int = 64
) -> float:
    """Right answers a second in a closed loop of `at_once` callers: what the server can do at most.

    Raises: what `run` raises."""
    known = await prepare(target, plan, inputs)
    begun = time.monotonic()

    def clock() -> float:
        return time.monotonic() - begun

    senders = _Senders(target, plan, known, clock)
    numbers = iter(range(2**62))
    right = 0

    async def caller(index: int) -> None:
        nonlocal right
        ended = asyncio.Event()
        protocol = "grpc" if index < plan.grpc_share * at_once else "http"
        while (now := clock()) < seconds:
            number = next(numbers)
            entry = Entry(number, now, number % len(known), protocol, 0, _LEARN_S)  # type: ignore[arg-type]  # one of two
            ended.clear()
            senders.send(entry, lambda _: ended.set())
            await ended.wait()
            if entry.outcome == book.OK:
                right += entry.ended is not None and entry.ended <= seconds
            else:
                await asyncio.sleep(0.01)  # a full queue is not asked again at once

    try:
        await asyncio.gather(*(caller(index) for index in range(at_once)))
    finally:
        await senders.close()
    return right / seconds


async def prepare(target: Target, plan: Plan, inputs: Sequence[Arrays] | None) -> Payloads:
    """The payloads of a run with their right answers, asked one at a time. Raises: what `run` raises."""
    return await asyncio.to_thread(_prepare, target, plan, inputs)


def _prepare(target: Target, plan: Plan, inputs: Sequence[Arrays] | None) -> Payloads:
    with Client(target.url, api_key=target.api_key, tls=target.tls) as client:
        specs = client.metadata(target.model, target.version).inputs
    if inputs is None:
        # Two values of an integer would leave too many payloads alike.
        numbers = range(plan.payloads)
        inputs = [make_up(specs, plan.rows, seed=(plan.seed, number), integers_below=100) for number in numbers]
    guessed = {name: datatype_of(array) for one in inputs[:1] for name, array in one.items()}
    declared = {spec.name: spec.datatype for spec in specs}
    known = Payloads(target.model, target.version, inputs, guessed | declared)
    first, second = ([_ask(target, known, number) for number in range(len(known))] for _ in range(2))
    known.learn(first, second)
    return known


def _ask(target: Target, known: Payloads, number: int) -> Arrays:
    """The outputs for one payload, asked alone. Blocks."""
    url = f"{target.url.rstrip('/')}{known.path}"
    headers = {"Content-Type": "application/json"}
    if target.api_key:
        headers["Authorization"] = f"Bearer {target.api_key}"
    request = urllib.request.Request(url, known[number].json_body(f"{number:016x}", _LEARN_S), headers)
    try:
        with counters.direct(target).open(request, timeout=_LEARN_S) as answer:
            _, _, outputs = known.read_json(answer.read())
            return outputs
    except urllib.error.HTTPError as error:
        said = error.read()[:500].decode(errors="replace")
        raise InvalidInput(f"{target.model} refused a request before the run began ({error.code}): {said}") from None
    except OSError as error:
        raise NotReady(f"cannot reach {target.url}: {error}") from error
    except Internal as error:
        raise InvalidInput(f"{target.url} does not answer in V2's form: {error}") from error


class _Senders:
    """One sender for each protocol that the plan uses."""

    def __init__(self, target: Target, plan: Plan, known: Payloads, clock: Callable[[], float]) -> None:
        self._http = HttpSender(target, known, clock, plan.patience_s, plan.connections)
        self._grpc = GrpcSender(target, known, clock, plan.patience_s) if plan.grpc_share else None

    def send(self, entry: Entry, done: Callable[[Entry], None]) -> None:
        if entry.protocol == "grpc" and self._grpc is not None:
            self._grpc.send(entry, done)
        else:
            self._http.send(entry, done)

    async def close(self) -> None:
        self._http.close()
        if self._grpc is not None:
            await self._grpc.close()


async def _send_all(
    all_entries: Sequence[Entry], senders: _Senders, clock: Callable[[], float], progress: Progress | None
) -> None:
    """Returns when each has its outcome: senders give up on each in the end."""
    ended = 0
    finished = asyncio.Event()

    def done(_: Entry) -> None:
        nonlocal ended
        ended += 1
        if ended == len(all_entries):
            finished.set()

    told_at = 0.0
    for number, entry in enumerate(all_entries):
        wait_s = entry.scheduled - clock()
        if wait_s > 0 or number % _IN_A_ROW == 0:
            await asyncio.sleep(max(0.0, wait_s))
        senders.send(entry, done)
        if progress is not None and entry.scheduled - told_at >= _PROGRESS_S:
            told_at = entry.scheduled
            progress(told_at, number + 1, ended)
    if all_entries:
        await finished.wait()
    if progress is not None:
        progress(clock(), len(all_entries), ended)


async def _break(fault: Fault, clock: Callable[[], float], events: list[Event], failed: list[Event]) -> None:
    await asyncio.sleep(max(0.0, fault.at_s - clock()))
    try:
        events.append(Event(clock(), await asyncio.to_thread(fault.inject)))
    except (NotFound, OSError) as error:
        failed.append(Event(clock(), str(error)))
        events.append(failed[-1])


async def _watch(pid: int | None, clock: Callable[[], float], memory: list[Memory]) -> None:
    while pid is not None:
        pids = [pid, *await asyncio.to_thread(descendants, pid)]
        memory.append(Memory(clock(), sum(map(rss_bytes, pids)), len(pids)))
        await asyncio.sleep(_WATCH_S)


async def _when_quiet(target: Target, before: counters.Counters | None) -> counters.Counters | None:
    """What the server counts once it holds no request and counts no more; None when it cannot be asked."""
    if before is None:
        return None
    last, quiet_by = None, time.monotonic() + _QUIET_S
    while time.monotonic() < quiet_by:
        now = await asyncio.to_thread(counters.read, target)
        if now is not None and now == last and not now.held:
            return now
        last = now
        await asyncio.sleep(_WATCH_S)
    return last
