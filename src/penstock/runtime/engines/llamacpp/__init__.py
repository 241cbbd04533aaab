"""llama.cpp, by the package `xllamacpp`: any GGUF file, and what other engines lack (log-probabilities of the likeliest
tokens, logit bias, LoRA adapters by request).

The package runs llama.cpp's server inside the process. It is spoken to over a Unix socket that has no name any more
once it has been opened, so that no other process can find it: its calls in process tell no token ids, and cannot be
cancelled before the first token. Options: `kv_type` (f16, q8_0, q4_0), `batch_tokens` (of a prompt, computed in one
step), `pooling` (mean, cls, last: embeds, instead of generating), `gpu_layers`, `flash_attention` (true, false).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from penstock.core.errors import DeadlineExceeded, InvalidInput, LoadError, ServableError, TooLarge, Unsupported
from penstock.core.language import Delta, EngineInfo, EngineLoad, Generation, Sampling, TokenLogprob
from penstock.language.files import FileKind, ModelFiles
from penstock.language.split_characters import Pieces, inside_character
from penstock.runtime.engines import Engine, EngineContext
from penstock.runtime.engines.llamacpp import wire
from penstock.runtime.engines.llamacpp.room import Room
from penstock.runtime.engines.llamacpp.settings import decide, info, parameters
from penstock.runtime.engines.llamacpp.stream import stream
from penstock.runtime.engines.llamacpp.watch import Watch

if TYPE_CHECKING:
    import aiohttp

_LOOKED_AMONG = 256
_LOAD_EVERY = 16  # tokens of a sequence; with its first and its last one too
_CERTAIN = 1e9  # a logit that no other comes near
# Ends of turns that llama.cpp takes for an end whatever the header says. Source: llama-vocab.cpp, special_eog_ids.
_ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "</s>", "<EOT>", "_<EOT>",
    "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
})  # fmt: skip


class LlamaEngine:
    """One loaded model, spoken to over its socket."""

    def __init__(
        self, server: object, socket: int, key: str, files: ModelFiles, info: EngineInfo, cached: bool, stall_s: float
    ) -> None:
        self.info = info
        self._server: object | None = server
        self._socket, self._path, self._key = socket, f"/proc/self/fd/{socket}", key
        self._cached = cached
        self._adapters = {name: at for at, name in enumerate(info.adapter_names)}
        self._room = Room(info.max_running, info.kv_capacity)
        self._watch = Watch(stall_s)
        self._queries = self._hits = 0
        self._session: tuple[asyncio.AbstractEventLoop, aiohttp.ClientSession] | None = None
        found = files.config.get("tokenizer.ggml.tokens")
        tokens = [str(token) for token in found] if isinstance(found, list) else []
        self._pieces = Pieces(tokens, str(files.config.get("tokenizer.ggml.model", "")))
        self._ends = _ends(files.config, tokens)

    async def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        """See `Engine`. Closing it closes the connection, at which llama.cpp leaves off."""
        prompt = len(generation.token_ids)
        if prompt >= self.info.context_tokens:
            raise TooLarge(
                f"the prompt has {prompt} tokens; this model holds {self.info.context_tokens} with the answer"
            )
        sampling = generation.sampling
        if (sampling.repetition_penalty or 1) != 1 and sampling.frequency_penalty:
            raise InvalidInput(
                "repetition_penalty: llama.cpp cannot count the prompt for it and not for frequency_penalty; give one "
                "of them", parameter="repetition_penalty",
            )  # fmt: skip
        if generation.adapter and generation.adapter not in self._adapters:
            raise InvalidInput(f"no LoRA adapter {generation.adapter!r}; there are {', '.join(self._adapters)}")
        total = min(prompt + generation.max_tokens, self.info.context_tokens)
        # A second copy where log-probabilities of a split character may have to be asked for.
        async with self._room.take(total if generation.logprobs is None else 2 * total):
            if time.monotonic() >= generation.deadline:
                raise DeadlineExceeded("the deadline passed before there was room for the request")
            async with contextlib.aclosing(self._answer(generation)) as deltas:
                async for delta in deltas:
                    yield delta

    async def _answer(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        run = _Run(generation, self._ends)
        for stage in _stages(generation):
            run.begin(stage)
            async with contextlib.aclosing(self._parts(run.rest())) as found:
                async for parts in found:
                    for part in parts:
                        await self._take(run, part)
                    if run.new or run.reason:
                        yield self._delta(run)
                    if run.reason or run.left_off:
                        break
                    if time.monotonic() >= generation.deadline:
                        raise DeadlineExceeded(f"the deadline passed after {len(run.said)} tokens")
                else:
                    raise ServableError("llama.cpp left off in the middle of an answer")
            if run.reason:
                return

    async def _take(self, run: _Run, part: wire.Part) -> None:
        """One message: a token, after those that were held back because they are parts of one character; or an end."""
        if part.error is not None:
            raise wire.error_of(part.error)
        lost = part.tokens_predicted - (len(run.said) - run.before)
        if run.reason or run.left_off:
            return
        if part.prompt_progress is not None:
            if not run.said:
                run.cached = part.prompt_progress.cache
        elif part.stop:
            await self._add_cut_off(run, lost)
            run.end(part.stop_type)
        else:
            for token in self._pieces.held_back(part.content, part.tokens[-1], lost - 1) if lost > 1 else ():
                await self._add_held_back(run, token)
            probabilities = part.completion_probabilities
            logprobs = run.generation.logprobs or 0
            run.add(part.tokens[-1], wire.logprob(probabilities[-1], logprobs) if probabilities else None)

    async def _add_held_back(self, run: _Run, token: int) -> None:
        """A token that llama.cpp told only as part of a text, or not at all."""
        if run.generation.logprobs is None:
            run.add(token, None)
            return
        for most in (_LOOKED_AMONG, self.info.vocabulary):
            likely = await self._next_ones(run, most)
            for other in likely:
                if other.id == token:
                    run.add(token, wire.logprob(wire.Likely(token, other.logprob, likely), run.generation.logprobs))
                    return
        raise ServableError(f"llama.cpp tells no log-probability of token {token}")

    async def _add_cut_off(self, run: _Run, count: int) -> None:
        """The last tokens of an end inside a character: llama.cpp tells them neither as ids nor as text. The likeliest
        that begin a character and do not end it; with greedy choice they are the very same. They make no text."""
        held = b""
        for _ in range(count):
            for other in await self._next_ones(run, _LOOKED_AMONG):
                if inside_character(held + self._pieces.bytes_of(other.id)):
                    held += self._pieces.bytes_of(other.id)
                    await self._add_held_back(run, other.id)
                    break

    async def _next_ones(self, run: _Run, count: int) -> list[wire.Likely]:
        """The likeliest tokens after what was said, and what each one's logarithm is."""
        end = Sampling(temperature=0, logit_bias={min(self._ends, default=0): _CERTAIN})  # one that is not held back
        ids = (*run.generation.token_ids, *run.said)
        asked = dataclasses.replace(
            run.generation, token_ids=ids, max_tokens=1, sampling=end, logprobs=count, grammar=None
        )  # fmt: skip
        body = wire.request(asked, self._adapters, prefix_cache=self._cached) | {"stream": False}
        part = wire.decode_part(await self._post("completion", body))
        return part.completion_probabilities[0].top_logprobs

    async def _post(self, name: str, body: Mapping[str, object]) -> bytes:
        data = msgspec.json.encode(body)
        async with self._client().post(
            f"http://llama/{name}", data=data, headers={"Authorization": f"Bearer {self._key}"}
        ) as response:
            answer = await response.read()
            if response.status != 200:
                raise wire.read_fault(answer, response.status)
            return answer

    def _delta(self, run: _Run) -> Delta:
        first = not run.told
        if first:
            self._queries += len(run.generation.token_ids)
            self._hits += max(run.cached, 0)
        told = first or bool(run.reason) or len(run.said) % _LOAD_EVERY == 0
        return run.delta(run.cached if first else -1, self.load() if told else None)

    async def _parts(self, generation: Generation) -> AsyncGenerator[list[wire.Part], None]:
        """The messages of a stream: those that came together, together."""
        body = msgspec.json.encode(wire.request(generation, self._adapters, prefix_cache=self._cached))
        with self._watch.running():
            async with contextlib.aclosing(stream(self._path, self._key, body, self._watch.moved)) as found:
                async for parts in found:
                    yield parts

    def _client(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session[0] is not loop:
            import aiohttp

            # A connection for each request: llama.cpp learns of a cancellation by its end.
            connector = aiohttp.UnixConnector(self._path, limit=0, force_close=True)
            timeout = aiohttp.ClientTimeout(total=None, sock_read=None)
            self._session = (loop, aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20))
        return self._session[1]

    async def embed(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Engine`."""
        longest = max((len(ids) for ids in batch), default=0)
        if longest > self.info.context_tokens:
            raise TooLarge(f"a text has {longest} tokens; this model takes {self.info.context_tokens}")
        async with self._room.take(longest):
            answer = await self._post("v1/embeddings", {"input": batch})
        rows = msgspec.json.decode(answer, type=_Embeddings).data
        return [row.embedding for row in sorted(rows, key=lambda row: row.index)]

    async def score(self, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        raise Unsupported("the engine llamacpp does not rank")

    def load(self) -> EngineLoad:
        room = self._room
        return EngineLoad(room.running, room.waiting, room.held, self.info.kv_capacity, self._queries, self._hits)

    async def close(self) -> None:
        """Ends llama.cpp's own threads."""
        if self._session is not None:
            loop, session = self._session
            if loop is asyncio.get_running_loop():
                await session.close()
            else:  # that loop has ended, and its connections with it
                session.detach()
            self._session = None
        os.close(self._socket)
        self._server = None  # its destructor ends its loop and waits for it


def _stages(generation: Generation) -> list[Generation]:
    """First the tokens before which it must not end, then the rest; each counts `max_tokens` from the beginning."""
    sampling = generation.sampling
    if not sampling.min_tokens or sampling.ignore_eos:
        return [generation]
    if generation.grammar is not None:
        raise InvalidInput(
            "min_tokens: llama.cpp cannot put off the end of what a grammar holds", parameter="min_tokens"
        )
    endless = dict(sampling.logit_bias) | dict.fromkeys(generation.stop_token_ids, -_CERTAIN)
    first = dataclasses.replace(
        generation, max_tokens=min(sampling.min_tokens, generation.max_tokens),
        sampling=dataclasses.replace(sampling, ignore_eos=True, logit_bias=endless),
    )  # fmt: skip
    return [first, generation] if first.max_tokens < generation.max_tokens else [first]


def _ends(config: Mapping[str, object], tokens: Sequence[str]) -> frozenset[int]:
    """The tokens at which llama.cpp ends."""
    told = (config.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return frozenset(
        [token for token in told if isinstance(token, int)] + [at for at, text in enumerate(tokens) if text in _ENDS]
    )


class _Row(msgspec.Struct):
    index: int
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Row]


class _Run:
    """What has been said of one generation."""

    def __init__(self, generation: Generation, ends: frozenset[int]) -> None:
        self.generation = generation
        self._ends = ends if not generation.sampling.ignore_eos else frozenset()
        self._stops = frozenset(generation.stop_token_ids)
        self.said: list[int] = []
        self.told = 0  # of these
        self.cached = 0
        self.left_off = False  # at the end of a stage
        self.before = 0  # tokens said before this stage
        # llama.cpp's penalties count the tokens of the prompt too; as often as they are there, a bias takes it back.
        self._prompt = collections.Counter(generation.token_ids) if generation.sampling.frequency_penalty else {}
        self._stage = generation
        self.reason: Literal["", "stop", "length"] = ""
        self._logprobs: list[TokenLogprob] = []

    @property
    def new(self) -> bool:
        return len(self.said) > self.told

    def add(self, token: int, likely: TokenLogprob | None) -> None:
        """One more token; what comes after an end is left out."""
        if self.reason:
            return
        self.said.append(token)
        if likely is not None:
            self._logprobs.append(likely)
        if token in self._stops or token in self._ends:
            self.reason = "stop"
        elif len(self.said) >= self.generation.max_tokens:
            self.reason = "length"

    def begin(self, stage: Generation) -> None:
        """The next of `_stages`."""
        self._stage, self.before, self.left_off = stage, len(self.said), False

    def rest(self) -> Generation:
        """What is left of the stage, as llama.cpp is to be asked for it."""
        stage, sampling = self._stage, self._stage.sampling
        said = len(self.said)
        if self._prompt:
            bias = dict(sampling.logit_bias)
            for token, count in self._prompt.items():
                bias[token] = bias.get(token, 0.0) + count * sampling.frequency_penalty
            sampling = dataclasses.replace(sampling, logit_bias=bias)
        if sampling.seed is not None and said:  # or the same numbers would be drawn again
            sampling = dataclasses.replace(sampling, seed=sampling.seed + said)
        ids = (*stage.token_ids, *self.said)
        return dataclasses.replace(stage, token_ids=ids, max_tokens=stage.max_tokens - said, sampling=sampling)

    def end(self, stop_type: str) -> None:
        """What llama.cpp says of the end. Raises: ServableError when it is none."""
        if stop_type not in ("eos", "limit"):
            raise ServableError(f"llama.cpp left off without an end ({stop_type})")
        if stop_type == "eos":
            self.reason = self.reason or "stop"
        elif self._stage.max_tokens < self.generation.max_tokens and len(self.said) >= self._stage.max_tokens:
            self.left_off = True
        else:
            self.reason = self.reason or "length"

    def delta(self, cached: int, load: EngineLoad | None) -> Delta:
        """All since the last one."""
        tokens, logprobs = tuple(self.said[self.told :]), tuple(self._logprobs[self.told :])
        self.told = len(self.said)
        return Delta(tokens, logprobs, finish_reason=self.reason, cached_tokens=cached, load=load)


class LlamaPlug:
    """Any GGUF file."""

    name = "llamacpp"
    preference = 40
    devices = frozenset({"cpu", "cuda"})
    kinds: frozenset[FileKind] = frozenset({"gguf"})

    def fit(self, files: ModelFiles) -> str:
        """See `EnginePlug`."""
        if files.kind != "gguf":
            return "it takes GGUF files; convert a Hugging Face folder with llama.cpp's convert_hf_to_gguf.py"
        if files.task in ("rank", "classify"):
            return "with it, rerankers and classifiers are not supported"
        if importlib.util.find_spec("xllamacpp") is None:
            return 'it is not installed: pip install "penstock[llm]"'
        return ""

    def load(self, files: ModelFiles, context: EngineContext) -> Engine:
        """See `EnginePlug`."""
        try:
            import xllamacpp
        except ImportError as error:
            raise LoadError(f'xllamacpp cannot be imported ({error}): pip install "penstock[llm]"') from None
        settings = decide(files, context)
        folder = tempfile.mkdtemp(prefix="penstock-")  # for its owner only
        key = secrets.token_urlsafe()
        try:
            path = os.path.join(folder, "llama.sock")
            made: Any = parameters(xllamacpp, files, settings)
            made.hostnames, made.api_keys = [path], [key]
            try:
                server = xllamacpp.Server(made)
            except RuntimeError as error:
                raise LoadError(f"llama.cpp cannot load {files.path.name}: {error}; what it said is above") from error
            if server.listening_address != f"unix://{path}":
                raise LoadError(f"llama.cpp listens at {server.listening_address} instead of a socket of its own")
            # Other processes cannot find it under this name, and it leaves nothing behind when the worker dies.
            socket = os.open(path, os.O_PATH)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        told = info(files, settings, importlib.metadata.version("xllamacpp"))
        return LlamaEngine(server, socket, key, files, told, context.prefix_cache, settings.stall_s)


plug = LlamaPlug()
