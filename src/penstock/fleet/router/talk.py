"""What a request to a language model is beside its way: a part of a replica's load, and of what its tenant may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from penstock.fleet.router.prefix_choice import begun, first_token, leave
from penstock.fleet.router.prompts import BYTES_PER_TOKEN, Prompt
from penstock.fleet.router.usage import Tail, Usage

if TYPE_CHECKING:
    from penstock.fleet.router.lanes import Upstream

_STREAMS = (b"data:", b"event:")

Settle = Callable[[float], None]
"""Told once how many tokens a request really took."""


class Talk:
    """Of one exchange. `over` is called once, whatever became of it."""

    __slots__ = ("_clock", "_settle", "_status", "_tail", "balanced", "prompt")

    def __init__(
        self, prompt: Prompt, balanced: bool, clock: Callable[[], float], settle: Settle | None = None
    ) -> None:  # fmt: skip
        """`balanced`: replicas are chosen by what they have of the prompt."""
        self.prompt = prompt
        self.balanced = balanced
        self._clock = clock
        self._settle = settle
        self._tail: Tail | None = None
        self._status = 0

    def answers(self, status: int, upstream: Upstream) -> None:
        """The head of the answer is there, from that replica. Where that is a hedge's, the one that was chosen has
        nothing more to do, and the answer tells nothing of it."""
        self._status = status
        if upstream is not self.prompt.upstream:
            leave(self.prompt)

    def hedged(self) -> None:
        """Another replica is asked, too: what comes first is not one idle replica's time."""
        self.prompt.alone = False

    def pieces(self, pieces: Sequence[bytes]) -> None:
        """More of the answer's body."""
        if self._tail is None:
            self._tail = Tail(reads=self._settle is not None)
            if self._status == 200 and pieces and pieces[0].startswith(_STREAMS):
                first_token(self.prompt, self._clock())  # a whole answer comes with its last one
            begun(self.prompt)
        self._tail.add(pieces)

    def over(self) -> None:
        """Nothing more comes."""
        prompt, tail = self.prompt, self._tail
        usage = Usage() if tail is None else tail.usage()
        self._learn(usage)
        leave(prompt)
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(self._taken(usage))

    def _taken(self, usage: Usage) -> float:
        """Tokens; 0 of what no replica began to answer, or refused."""
        tail = self._tail
        if self._status >= 400 or tail is None:
            return 0.0
        prompt = self.prompt.tokens if usage.prompt is None else usage.prompt
        if usage.output is not None:
            return prompt + usage.output
        written = tail.written()
        return prompt + (min(self.prompt.output, tail.size / BYTES_PER_TOKEN) if written is None else written)

    def _learn(self, usage: Usage) -> None:
        """The answer says how much of its prompt was cached: the replica keeps less, or more, than was believed."""
        prompt = self.prompt
        upstream = prompt.upstream
        if upstream is not None and prompt.matched and usage.cached is not None and usage.prompt:
            upstream.prefixes.learn(prompt.matched, int(usage.cached / usage.prompt * (len(prompt.keys) + 1)))
