"""What every request to a language model passes on its way to the queue: its caller's quota, and the version's gate."""

from __future__ import annotations

import time
from asyncio import Future
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Protocol
from weakref import WeakKeyDictionary

import msgspec

from penstock.core.errors import PenstockError
from penstock.core.messages import Request, Response
from penstock.core.servable import Signature
from penstock.runtime.keys import KeyLimits
from penstock.runtime.language.admission import Admission
from penstock.runtime.language.quotas import Quotas
from penstock.runtime.language.wire import GENERATION, info_of
from penstock.runtime.options import ModelOptions

SERIAL = "serial"
"""Parameter of a request: the load of the version (`ModelDescription.serial`) whose tokens it speaks."""

CHOICE = "choice"
"""Parameter of a request: its number among the choices of one ask, which count as one request. The first one is 0."""

# What may wait, where nothing is said: as much as fills the caches so many times; or so many tokens where no engine
# says how much its cache holds.
_TIMES, _TOKENS = 8, 1 << 18


class _Bound(msgspec.Struct):
    """What is needed here of a Generation."""

    max_tokens: int


_bound = msgspec.json.Decoder(_Bound)


class Recorder(Protocol):
    """Counts what is refused."""

    def refused(self, reason: str) -> None: ...


class Queue(Protocol):
    """The queue before a version's workers."""

    @property
    def recorder(self) -> Recorder: ...

    @property
    def slots(self) -> int: ...

    def expect(self) -> None: ...

    def expect_no_more(self) -> None: ...


class Version(Protocol):
    """A loaded version of a language model."""

    @property
    def options(self) -> ModelOptions: ...

    @property
    def signature(self) -> Signature: ...

    @property
    def batcher(self) -> Queue: ...


class Gates:
    """The gates of all versions, and the quotas of all callers."""

    def __init__(self, limits: Mapping[str, KeyLimits]) -> None:
        self._quotas = Quotas(limits, time.monotonic())
        self._gates: WeakKeyDictionary[Version, Admission] = WeakKeyDictionary()

    async def stream(
        self, version: Version, request: Request, answers_of: Callable[[], AsyncIterator[Response]]
    ) -> AsyncIterator[Response]:
        """The answers of a generation, once it may begin. `answers_of` puts it into the version's queue.

        Raises: QuotaExceeded, Overloaded, DeadlineExceeded; whatever the answers raise.
        """
        entered = time.monotonic()
        prompt_tokens = len(request.inputs["token_ids"])
        max_tokens = _bound.decode(str(request.parameters[GENERATION])).max_tokens
        gate = self._gate(version)
        began, generated = False, 0
        try:
            reservation = self._quotas.reserve(
                request.caller, gate.cost(prompt_tokens, max_tokens), entered,
                requests=0 if request.parameters.get(CHOICE) else 1,
            )  # fmt: skip
        except PenstockError as error:
            version.batcher.recorder.refused(error.reason)
            raise
        version.batcher.expect()  # who waits at the gate is waited for when the version goes
        try:
            async with gate.admitted(
                request.caller, prompt_tokens, max_tokens, priority=request.priority, deadline=request.deadline
            ) as admitted:
                began = True
                if request.push is not None:
                    push = request.push

                    def counted(count: int, piece: bytes) -> bool:
                        nonlocal generated
                        if not generated or not push(count, piece):
                            return False
                        generated += count
                        admitted.generated = generated
                        return True

                    request.push = counted
                async with aclosing(answers_of()) as answers:  # type: ignore[type-var]  # an async generator
                    async for response in answers:
                        if not generated:
                            request.timings.submitted = entered  # the wait before the queue is waiting too
                        generated += response.count
                        admitted.generated = generated
                        yield response
        except PenstockError as error:
            if not began:
                version.batcher.recorder.refused(error.reason)
            raise
        finally:
            version.batcher.expect_no_more()
            self._quotas.settle(reservation, prompt_tokens + generated if began else 0)

    def submit(self, request: Request, future_of: Callable[[], Future[Response]]) -> Future[Response]:
        """The future of embeddings or scores, which put out no tokens and wait in the queue only.

        Raises: QuotaExceeded; whatever `future_of` raises.
        """
        tokens = len(request.inputs["token_ids"])
        reservation = self._quotas.reserve(request.caller, tokens, time.monotonic())
        try:
            future = future_of()
        except PenstockError:
            self._quotas.settle(reservation, 0)
            raise
        future.add_done_callback(lambda _: self._quotas.settle(reservation, tokens))
        return future

    def waiting(self, version: Version) -> int:
        """Generations that wait before the queue of a version."""
        gate = self._gates.get(version)
        return 0 if gate is None else gate.waiting

    def _gate(self, version: Version) -> Admission:
        info = info_of(version.signature)
        assert info is not None
        engines = max(1, version.batcher.slots // version.signature.concurrency)
        tokens, running = info.kv_capacity * engines, info.max_running * engines
        gate = self._gates.get(version)
        if gate is None:
            most = version.options.options.get("max_queued_tokens", _TIMES * tokens or _TOKENS)
            gate = self._gates[version] = Admission(tokens, running, int(most), self._quotas.weight)
        elif (gate.most_tokens, gate.most_running) != (tokens, running):
            gate.resize(tokens, running)
        return gate
