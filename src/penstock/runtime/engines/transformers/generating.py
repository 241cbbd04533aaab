"""Generation with transformers: one `generate` per sequence, each in a thread of its own.

The library's continuous batching takes token ids, but of what a request may ask it knows temperature, top_k and top_p
only: no seed, grammar, bias, penalty or alternatives per request. So sequences share nothing but the processors, and
few run at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from penstock.core.errors import InvalidInput, Overloaded, PenstockError, ServableError, TooLarge
from penstock.core.language import Delta, EngineInfo, EngineLoad, Format, Generation, Grammar, TokenLogprob
from penstock.language.grammars.compiling import Compiler
from penstock.language.grammars.masker import Masker, TokenTable
from penstock.language.tokenizer import Tokenizer
from penstock.runtime.engines.transformers.choosing import Chooser, likely

_PROMPT_CHUNK = (
    128  # tokens of a prompt whose log-probabilities are computed in one step: rows of the vocabulary's size
)


class Generator:
    """One causal model and its sequences."""

    def __init__(
        self, model: Any, words: Tokenizer, ends: tuple[int, ...], defaults: Mapping[str, float], info: EngineInfo
    ) -> None:
        self._model, self._words, self._ends, self._defaults = model, words, ends, defaults
        self._threads = ThreadPoolExecutor(info.max_running, "transformers")
        self._lock = threading.Lock()
        self._running: dict[int, int] = {}  # sequence → its tokens
        self._waiting: set[int] = set()
        self._count = 0
        self._compiler = Compiler()
        self._table: TokenTable | None = None
        self.info = info

    async def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        """Tokens as they come. Raises: InvalidInput, TooLarge, DeadlineExceeded, Overloaded, ServableError."""
        self._check(generation)
        loop = asyncio.get_running_loop()
        came: asyncio.Queue[Delta | Exception] = asyncio.Queue()

        def put(item: Delta | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(came.put_nowait, item)

        stop = threading.Event()
        self._count += 1
        number = self._count
        with self._lock:
            self._waiting.add(number)
        running = self._threads.submit(self._run, number, generation, stop, put)
        try:
            while True:
                item = await came.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish_reason:
                    return
        finally:
            stop.set()
            if running.cancel():
                with self._lock:
                    self._waiting.discard(number)

    async def embed(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        raise NotImplementedError  # `info` says that it does not embed

    async def score(self, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        raise NotImplementedError  # `info` says that it neither ranks nor classifies

    def load(self) -> EngineLoad:
        with self._lock:
            running, waiting, used = len(self._running), len(self._waiting), sum(self._running.values())
        return EngineLoad(running, waiting, used, self.info.kv_capacity)

    async def close(self) -> None:
        """Drops what waits. What runs stops with its next token, because its iterators are closed by now."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _check(self, generation: Generation) -> None:
        if not generation.token_ids:
            raise InvalidInput("the prompt has no tokens")
        if min(generation.token_ids) < 0 or max(generation.token_ids) >= self.info.vocabulary:
            raise InvalidInput(f"the prompt has ids outside of the vocabulary, 0 to {self.info.vocabulary - 1}")
        if len(generation.token_ids) + generation.max_tokens > self.info.context_tokens:
            raise TooLarge(
                f"{len(generation.token_ids)} tokens of prompt and {generation.max_tokens} of output do not fit into "
                f"the context of {self.info.context_tokens}"
            )

    def _run(
        self, number: int, generation: Generation, stop: threading.Event, put: Callable[[Delta | Exception], None]
    ) -> None:
        """In a thread."""
        import torch

        with self._lock:
            self._waiting.discard(number)
            self._running[number] = len(generation.token_ids)

        def emit(delta: Delta) -> None:
            if delta.finish_reason:  # its slot is free before anybody hears of the end
                self._left(number)
            else:
                with self._lock:
                    self._running[number] += len(delta.token_ids)
            put(delta)

        try:
            if not stop.is_set():
                self._generate(generation, stop, emit)
        except PenstockError as error:
            self._left(number)
            put(error)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            self._left(number)
            put(Overloaded("the device has no memory for this request now: send a shorter one, or try later"))
        except Exception as error:
            self._left(number)
            put(ServableError(f"transformers failed: {type(error).__name__}: {str(error)[:300]}"))
        finally:
            self._left(number)

    def _left(self, number: int) -> None:
        with self._lock:
            self._running.pop(number, None)

    def _generate(self, generation: Generation, stop: threading.Event, emit: Callable[[Delta], None]) -> None:
        import torch
        import transformers

        device = str(self._model.device)
        masker = self._masker(generation.grammar) if generation.grammar else None
        chooser = Chooser(generation, self._defaults, self._ends, masker, stop, emit, device)
        ids = torch.tensor([generation.token_ids], dtype=torch.long, device=device)
        first: dict[str, Any] = {"cached_tokens": 0, "load": self.load()}
        if generation.prompt_logprobs is not None:
            first["prompt_logprobs"] = self._prompt_logprobs(ids, generation.prompt_logprobs, stop)
        chooser.first(**first)
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=transformers.GenerationConfig(
                do_sample=False, max_new_tokens=generation.max_tokens, eos_token_id=None, pad_token_id=0, use_cache=True
            ),
            logits_processor=transformers.LogitsProcessorList([chooser]),
            stopping_criteria=transformers.StoppingCriteriaList([chooser.stopped]),
        )

    def _prompt_logprobs(self, ids: Any, count: int, stop: threading.Event) -> tuple[TokenLogprob | None, ...]:
        """Of every token of the prompt after the first, whose probability no model tells."""
        import torch
        import transformers

        cache = transformers.DynamicCache()
        found: list[TokenLogprob | None] = [None]
        tokens = ids[0].tolist()
        with torch.no_grad():
            for start in range(0, len(tokens), _PROMPT_CHUNK):
                if stop.is_set():
                    break
                chunk = ids[:, start : start + _PROMPT_CHUNK]
                logits = self._model(input_ids=chunk, past_key_values=cache, use_cache=True).logits[0].float()
                following = tokens[start + 1 : start + 1 + len(logits)]
                found += [likely(row, token, count) for row, token in zip(logits, following, strict=False)]
        return tuple(found)

    def _masker(self, grammar: Grammar) -> Masker:
        compiled = self._compiler.compile_format(
            Format("regex" if grammar.kind == "regex" else "ebnf", text=grammar.text), where="grammar"
        )
        if compiled is None:
            raise InvalidInput("the grammar is empty")
        with self._lock:
            if self._table is None:
                size = self.info.vocabulary
                pieces = [self._words.piece(index) for index in range(size)]
                special = [index for index in self._words.special_ids if index < size]
                self._table = TokenTable(pieces, special, self._ends)
            table = self._table
        return Masker(compiled, table)
