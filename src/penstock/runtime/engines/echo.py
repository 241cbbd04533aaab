"""An engine without weights: the in-memory twin of the others, for tests and for measuring what lies around engines.

Its tokens are bytes (0 to 255), 256 ends, 257 begins. It says what the last line of its prompt says after `say:`, else
the whole last line, one token a step. What its file holds, it says before that, so that versions can be told apart.
Options: `delay_s` (slept before each token), `tokens_per_delta`, `max_running`, `lacks` (what of `EngineInfo` it is to
do without, with commas). Of its adapters it has the names only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import math
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from penstock.core.errors import LoadError
from penstock.core.language import Delta, EngineInfo, EngineLoad, Generation, TokenLogprob
from penstock.language.files import FileKind, ModelFiles
from penstock.runtime.engines import Engine, EngineContext

END, BEGIN, VOCABULARY = 256, 257, 258
_SAY = b"say:"
_DIE = b"die:"  # says what follows, then ends the process: for tests of what becomes of the callers
_SIZE = 8  # of its embeddings


class EchoEngine:
    """Answers with its prompt's last line."""

    def __init__(self, context: EngineContext, says_first: bytes = b"") -> None:
        options = dict(context.options)
        self._delay_s = float(options.pop("delay_s", 0.0))
        self._step = int(options.pop("tokens_per_delta", 1))
        lacks = [name for name in str(options.pop("lacks", "")).split(",") if name]
        if options:
            raise LoadError(f"engine echo knows delay_s, tokens_per_delta and lacks, not {', '.join(options)}")
        self._says_first = says_first
        self._running = 0
        self._held = 0
        self.info = EngineInfo(
            engine="echo", engine_version="1", context_tokens=context.context_tokens or 4096, vocabulary=VOCABULARY,
            embeds=True, top_logprobs=5, logit_bias=True, min_tokens=True, ignore_eos=True, min_p=True,
            max_running=context.max_running or 64, kv_bytes_per_token=1, kv_capacity=1 << 20, embedding_size=_SIZE,
            adapters="request" if context.adapters else "none", adapter_names=tuple(context.adapters),
        )  # fmt: skip
        if unknown := [name for name in lacks if getattr(self.info, name, None) is not True]:
            raise LoadError(f"engine echo can do no {', '.join(unknown)} that it could lack")
        without: dict[str, Any] = dict.fromkeys(lacks, False)
        self.info = dataclasses.replace(self.info, **without)

    async def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        """The last line of the prompt, token by token, then the end; as often as `min_tokens` or `ignore_eos` ask."""
        self._running += 1
        self._held += len(generation.token_ids)
        try:
            text = bytes(token for token in generation.token_ids if token < END)
            line = text.rstrip(b"\n").rpartition(b"\n")[2]
            dies = line.startswith(_DIE)
            line = self._says_first + line.removeprefix(_SAY).removeprefix(_DIE) or b"."
            said: list[int] = []
            first = True
            while True:
                await asyncio.sleep(self._delay_s)
                tokens = self._next(generation, line, said)
                said += tokens
                if dies and len(said) >= len(line):
                    os.kill(os.getpid(), signal.SIGKILL)
                ended = tokens[-1] == END or tokens[-1] in generation.stop_token_ids
                reason: Literal["", "stop", "length"] = (
                    "stop" if ended else "length" if len(said) >= generation.max_tokens else ""
                )
                logprobs = () if generation.logprobs is None else tuple(self._logprob(t, generation) for t in tokens)
                yield Delta(
                    tuple(tokens), logprobs, finish_reason=reason, cached_tokens=0 if first else -1, load=self.load()
                )
                first = False
                if reason:
                    return
        finally:
            self._running -= 1
            self._held -= len(generation.token_ids)

    def _next(self, generation: Generation, line: bytes, said: Sequence[int]) -> list[int]:
        tokens: list[int] = []
        more = generation.sampling.ignore_eos
        least = generation.sampling.min_tokens
        while len(tokens) < self._step and len(said) + len(tokens) < generation.max_tokens:
            at = len(said) + len(tokens)
            if at >= len(line) and not more and at >= least:
                tokens.append(END)
                break
            tokens.append(line[at % len(line)])
            if tokens[-1] in generation.stop_token_ids:
                break
        return tokens

    def _logprob(self, token: int, generation: Generation) -> TokenLogprob:
        count = generation.logprobs or 0
        top = [(token, math.log(0.5))] + [((token + i) % END, math.log(0.1)) for i in range(1, count)]
        return TokenLogprob(token, math.log(0.5), tuple(top[:count]))

    async def embed(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """A vector of length 1 that only the ids decide."""
        found = []
        for ids in batch:
            digest = hashlib.sha256(b",".join(b"%d" % token for token in ids)).digest()
            vector = [byte - 127.5 for byte in digest[:_SIZE]]
            length = math.sqrt(sum(value * value for value in vector))
            found.append([value / length for value in vector])
        return found

    async def score(self, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        raise NotImplementedError  # `info` says that it neither ranks nor classifies

    def load(self) -> EngineLoad:
        return EngineLoad(self._running, 0, self._held, self.info.kv_capacity)

    async def close(self) -> None:
        """Nothing to free."""


class EchoPlug:
    """Fits its own empty files only."""

    name = "echo"
    preference = 0
    devices = frozenset({"cpu", "cuda"})
    kinds: frozenset[FileKind] = frozenset({"echo"})

    def fit(self, files: ModelFiles) -> str:
        return "" if files.kind == "echo" else "it is for tests"

    def load(self, files: ModelFiles, context: EngineContext) -> Engine:
        return EchoEngine(context, files.path.read_bytes().strip())


plug = EchoPlug()
