"""OpenVINO GenAI's continuous batching: generates.

One task on the worker's loop owns the pipeline: it steps while anything runs, hands out what each sequence has got, and
lets the loop turn before the next step. A thread would win nothing, because `step()` holds the interpreter's lock.
Options: `chunk_tokens` (of prompts, in one step), `kv_cache` (precision: "f16", "f32", "u8").
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from penstock.core.errors import InvalidInput, LoadError, Overloaded, TooLarge
from penstock.core.language import Delta, EngineInfo, EngineLoad, Generation, Grammar, TokenLogprob
from penstock.language import files as language_files
from penstock.language.files import ModelFiles
from penstock.language.generation_config import end_ids, sampling_defaults
from penstock.language.tokenizer import open_tokenizer
from penstock.runtime.conversion.grammar_trial import GrammarTrial
from penstock.runtime.conversion.graph_shape import GraphShape
from penstock.runtime.conversion.minimal_tokenizer import minimal_tokenizer
from penstock.runtime.engines import Engine, EngineContext

OPTIONS = ("chunk_tokens", "kv_cache")
_BLOCK = 32  # tokens of a block of KV cache on CPUs
_MAX_RUNNING = 64
_MOST_TRIED = 256  # grammars that are known to compile
_KV_BYTES = {"f16": 2, "f32": 4, "u8": 1}  # of one number
_KV_SHARE, _MOST_KV_BYTES = 0.25, 4 << 30  # of free memory, when nobody says how much
# Turns of the loop between two steps: what was put is sent and what came is read in the first, a task that was begun or
# cancelled by it runs in the second, before the third.
_TURNS = 3
_MOMENT_S, _MOST_MOMENTS = 0.0005, 4  # an idle engine waits for so long whether more requests come
_LOAD_EVERY_S = 0.25
# A step computes at most so many tokens of prompts: half a second of work at 200 GFLOP/s a thread (int8, AVX-512 VNNI).
_CHUNK_FLOPS = 100e9
_LEAST_CHUNK, _MOST_CHUNK = 64, 512


class _Stream:
    """One sequence, and where its deltas go. `done` is settled after the last one."""

    def __init__(self, generation: Generation, handle: Any, put: Callable[[Delta], None]) -> None:
        self.generation = generation
        self.handle = handle
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = False
        self._put = put

    def put(self, delta: Delta) -> None:
        self._put(delta)
        if delta.finish_reason:
            self.ended = True
            if not self.done.done():
                self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        self.ended = True
        if not self.done.done():
            self.done.set_exception(error)


class OpenVinoEngine:
    """One pipeline and its sequences."""

    def __init__(
        self, pipeline: Any, trial: GrammarTrial, info: EngineInfo, defaults: Mapping[str, Any], ends: Sequence[int]
    ) -> None:
        self._pipeline = pipeline
        self._trial = trial
        self._defaults = defaults
        self._ends = tuple(ends)
        self._streams: dict[int, _Stream] = {}
        self._count = 0
        self._stepping: asyncio.Task[None] | None = None
        self._load_at = 0.0
        self._tried: set[Grammar] = set()
        self._trying = ThreadPoolExecutor(1, "grammar")
        self.info = info

    async def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        """Tokens as they come. Raises: as `pour`."""
        waiting: collections.deque[Delta] = collections.deque()
        came = asyncio.Event()

        def put(delta: Delta) -> None:
            waiting.append(delta)
            came.set()

        pouring = asyncio.create_task(self.pour(generation, put))
        pouring.add_done_callback(lambda _: came.set())
        try:
            while True:
                while waiting:
                    yield waiting.popleft()
                if pouring.done():
                    pouring.result()
                    return
                came.clear()
                await came.wait()
        finally:
            pouring.cancel()
            await asyncio.gather(pouring, return_exceptions=True)

    async def pour(self, generation: Generation, put: Callable[[Delta], None]) -> None:
        """See `engines.Pouring`. Raises: InvalidInput, TooLarge, Overloaded."""
        import numpy as np
        import openvino

        if not generation.token_ids:
            raise InvalidInput("the prompt has no tokens")
        if min(generation.token_ids) < 0 or max(generation.token_ids) >= self.info.vocabulary:
            raise InvalidInput(f"the prompt has ids outside of the vocabulary, 0 to {self.info.vocabulary - 1}")
        if len(generation.token_ids) + generation.max_tokens > self.info.context_tokens:
            raise TooLarge(
                f"{len(generation.token_ids)} tokens of prompt and {generation.max_tokens} of output do not fit into "
                f"the context of {self.info.context_tokens}"
            )
        if generation.grammar is not None:
            await self._try(generation.grammar)
        config = self._config(generation)
        self._count += 1
        number = self._count
        ids = openvino.Tensor(np.array([generation.token_ids], np.int64))
        stream = _Stream(generation, self._pipeline.add_request(number, ids, config), put)
        self._streams[number] = stream
        self._step_on()
        try:
            await stream.done
        finally:
            del self._streams[number]
            if not stream.ended:
                stream.handle.cancel()
                self._step_on()  # the next step frees its blocks

    async def embed(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        raise NotImplementedError  # `info` says that it does not embed

    async def score(self, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        raise NotImplementedError  # `info` says that it neither ranks nor classifies

    def load(self) -> EngineLoad:
        found = self._pipeline.get_metrics()
        if not self._pipeline.has_non_finished_requests():  # the metrics are those of the last step
            return EngineLoad(kv_capacity=self.info.kv_capacity)
        running = int(found.scheduled_requests)
        used = round(found.cache_usage / 100 * self.info.kv_capacity)
        return EngineLoad(running, max(0, len(self._streams) - running), used, self.info.kv_capacity)

    async def close(self) -> None:
        """Ends what runs. The pipeline's memory goes with the last reference."""
        self._trying.shutdown(wait=False, cancel_futures=True)
        for stream in self._streams.values():
            stream.handle.cancel()
        if self._stepping is not None and not self._stepping.done():
            self._stepping.cancel()
            with contextlib.suppress(asyncio.CancelledError, RuntimeError):  # RuntimeError: it was of a loop that ended
                await self._stepping

    def _step_on(self) -> None:
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.get_running_loop().create_task(self._steps())

    async def _steps(self) -> None:
        try:
            await self._gather()
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()
                self._hand_out()
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
            self._hand_out()
        except Exception as error:  # the pipeline's state is unknown: the worker is replaced
            print(f"openvino: a step failed, the worker ends: {error}", file=sys.stderr, flush=True)
            os._exit(70)

    async def _gather(self) -> None:
        """Requests that come together begin with one step: alone, the first would keep the others waiting for its."""
        for _ in range(_MOST_MOMENTS):
            count = self._count
            await asyncio.sleep(_MOMENT_S)
            if count == self._count:
                return

    def _hand_out(self) -> None:
        now = time.monotonic()
        load = None
        if now - self._load_at >= _LOAD_EVERY_S:
            self._load_at, load = now, self.load()
        for stream in list(self._streams.values()):
            if stream.ended:
                continue
            while not stream.ended and stream.handle.can_read():
                for output in stream.handle.read().values():
                    stream.put(_ended_early(stream, _delta(stream.generation, output, load)))
            if not stream.ended and stream.handle.get_status().name == "IGNORED":
                stream.fail(Overloaded("the KV cache has no room for this prompt: send a shorter one, or try later"))

    def _config(self, generation: Generation) -> Any:
        import openvino_genai

        asked, defaults = generation.sampling, self._defaults
        config = openvino_genai.GenerationConfig(max_new_tokens=generation.max_tokens)
        temperature = _first(asked.temperature, defaults.get("temperature"), 1.0)
        if temperature > 0:
            config.do_sample = True
            config.temperature = temperature
            config.top_p = _first(asked.top_p, defaults.get("top_p"), 1.0) or 1e-6  # 0 is the likeliest only
            if top_k := _first(asked.top_k, defaults.get("top_k"), 0):
                config.top_k = top_k
            config.min_p = min(_first(asked.min_p, defaults.get("min_p"), 0.0), 1 - 1e-6)  # it refuses 1
            config.rng_seed = secrets.randbits(32) if asked.seed is None else asked.seed % (1 << 64)
        config.presence_penalty, config.frequency_penalty = asked.presence_penalty, asked.frequency_penalty
        config.repetition_penalty = _first(asked.repetition_penalty, defaults.get("repetition_penalty"), 1.0)
        config.min_new_tokens = asked.min_tokens
        config.ignore_eos = asked.ignore_eos
        if self._ends:
            config.eos_token_id = self._ends[0]
        config.stop_token_ids = {*generation.stop_token_ids, *self._ends}
        config.logprobs = 0 if generation.logprobs is None else 1
        if generation.grammar is not None:
            config.structured_output_config = _structure(generation.grammar)
        try:
            config.validate()
        except RuntimeError as error:
            said = str(error).strip().splitlines() or [""]
            raise InvalidInput(f"the engine does not take these parameters: {said[-1][:300]}") from None
        return config

    async def _try(self, grammar: Grammar) -> None:
        """Compiles a grammar beside the loop, which goes on: what is compiled once is there for the pipeline too.

        Raises: InvalidInput, it does not compile.
        """
        if grammar not in self._tried:
            await asyncio.get_running_loop().run_in_executor(self._trying, self._try_here, grammar)

    def _try_here(self, grammar: Grammar) -> None:
        if grammar in self._tried:  # another request's, which was before this one
            return
        import openvino_genai

        config = openvino_genai.GenerationConfig(max_new_tokens=1)
        config.eos_token_id = self._ends[0] if self._ends else 0
        config.structured_output_config = _structure(grammar)
        self._trial.check(config)
        if len(self._tried) >= _MOST_TRIED:
            self._tried.clear()
        self._tried.add(grammar)


def _structure(grammar: Grammar) -> Any:
    import openvino_genai

    names = {"regex": "regex", "ebnf": "grammar", "json": "json_schema"}
    return openvino_genai.StructuredOutputConfig(**{names[grammar.kind]: grammar.text})


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _ended_early(stream: _Stream, delta: Delta) -> Delta:
    """With `ignore_eos` the pipeline ignores all ids that end; those that were asked for are met here."""
    generation = stream.generation
    if not generation.sampling.ignore_eos:
        return delta
    at = next((at for at, token in enumerate(delta.token_ids, 1) if token in generation.stop_token_ids), 0)
    if not at:
        return delta
    stream.handle.cancel()
    return replace(delta, token_ids=delta.token_ids[:at], logprobs=delta.logprobs[:at], finish_reason="stop")


def _delta(generation: Generation, output: Any, load: EngineLoad | None) -> Delta:
    tokens = tuple(output.generated_ids)
    logprobs: tuple[TokenLogprob, ...] = ()
    if generation.logprobs is not None:
        logprobs = tuple(map(TokenLogprob, tokens, output.generated_log_probs))
    reasons: dict[str, Literal["", "stop", "length"]] = {"STOP": "stop", "LENGTH": "length"}
    return Delta(tokens, logprobs, finish_reason=reasons.get(output.finish_reason.name, ""), load=load)


def short(error: Exception) -> str:
    return " ".join(str(error).split())[-400:]


def loaded(files: ModelFiles, folder: Path, context: EngineContext) -> Engine:
    import openvino
    import openvino_genai

    words = open_tokenizer(files)
    shape = GraphShape(openvino.Core().read_model(folder / "openvino_model.xml"))
    ends, defaults = _ends(files), sampling_defaults(files)
    pieces = [words.piece(index) for index in range(shape.vocabulary)]
    tokenizer = minimal_tokenizer(pieces, ends[0] if ends else 0)
    longest = _context_tokens(files, context)
    running = context.max_running or _MAX_RUNNING
    schedule = openvino_genai.SchedulerConfig()
    schedule.max_num_seqs = running
    schedule.dynamic_split_fuse = True
    schedule.enable_prefix_caching = context.prefix_cache
    schedule.max_num_batched_tokens = _chunk(context, shape.weights)
    per_token = shape.kv_numbers * _KV_BYTES.get(str(context.options.get("kv_cache")), 2)
    capacity = _kv_bytes(context, per_token, longest, running) // (per_token * _BLOCK) * _BLOCK
    schedule.num_kv_blocks = capacity // _BLOCK
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": context.threads}
    if precision := context.options.get("kv_cache"):
        if precision not in _KV_BYTES:
            raise LoadError(f"kv_cache = {precision!r}: it is {', '.join(_KV_BYTES)}")
        properties["KV_CACHE_PRECISION"] = precision
        if precision == "f32":  # attention that is computed in bf16 has no such cache (2026.4.1)
            properties["INFERENCE_PRECISION_HINT"] = "f32"
    properties |= _adapter(context.adapters)
    pipeline = openvino_genai.ContinuousBatchingPipeline(folder, tokenizer, schedule, "CPU", **properties)
    reserved = int(pipeline.get_metrics().cache_size_in_bytes)
    trial = GrammarTrial(tokenizer, shape.vocabulary)
    info = EngineInfo(
        engine="openvino", engine_version=version("openvino-genai"), context_tokens=min(longest, capacity),
        vocabulary=shape.vocabulary, grammars=frozenset({"regex", "ebnf"}), min_p=True, min_tokens=True,
        ignore_eos=True, adapters="process" if context.adapters else "none", adapter_names=tuple(context.adapters),
        prefix_cache=context.prefix_cache, max_running=running, kv_capacity=capacity,
        kv_bytes_per_token=reserved // capacity or per_token,
        weights_bytes=(folder / "openvino_model.bin").stat().st_size, precision=shape.precision,
        note="" if folder == files.path else f"converted from {files.kind}", seeded=not context.prefix_cache,
    )  # fmt: skip
    return OpenVinoEngine(pipeline, trial, info, defaults, ends)


def _chunk(context: EngineContext, weights: int) -> int:
    asked = context.options.get("chunk_tokens")
    if asked is not None:
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < _BLOCK:
            raise LoadError(f"chunk_tokens = {asked!r}: write a whole number from {_BLOCK}")
        return asked
    most = int(_CHUNK_FLOPS * context.threads / (2 * max(1, weights)))
    return max(_LEAST_CHUNK, min(_MOST_CHUNK, most // _BLOCK * _BLOCK))


def _kv_bytes(context: EngineContext, per_token: int, longest: int, running: int) -> int:
    """As asked; else room for every sequence's whole context, at most a quarter of free memory and 4 GiB."""
    least = (longest + _BLOCK) * per_token
    if context.kv_cache_bytes is not None:
        return max(context.kv_cache_bytes, 2 * _BLOCK * per_token)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(
        least * running, max(int(free * _KV_SHARE * context.device_fraction), 4 * _BLOCK * per_token), _MOST_KV_BYTES
    )


def _context_tokens(files: ModelFiles, context: EngineContext) -> int:
    key = f"{files.architecture}.context_length" if files.kind == "gguf" else "max_position_embeddings"
    own = files.config.get(key)
    longest = own if isinstance(own, int) and own > 0 else 4096
    return min(longest, context.context_tokens or longest)


def _ends(files: ModelFiles) -> list[int]:
    """Ids that end a text: of a GGUF header, else of the folder's files."""
    if files.kind != "gguf":
        return list(end_ids(files))
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [files.config.get(f"tokenizer.ggml.{key}") for key in keys]
    return list(dict.fromkeys(index for index in found if isinstance(index, int) and not isinstance(index, bool)))


def _adapter(adapters: Mapping[str, Path]) -> dict[str, Any]:
    """The one LoRA adapter, fused into the weights. Raises: LoadError for several."""
    if not adapters:
        return {}
    if len(adapters) > 1:
        raise LoadError(
            f"OpenVINO takes one LoRA adapter for a whole process, not {', '.join(adapters)}: load the model once for "
            'each, or with engine = "llamacpp", which chooses them by request'
        )
    import openvino_genai

    (path,) = adapters.values()
    config = language_files.read_json(path / "adapter_config.json")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise LoadError(f"{path.name}/adapter_config.json lacks r or lora_alpha")
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    mode = openvino_genai.AdapterConfig.Mode.MODE_STATIC
    adapter = openvino_genai.Adapter(path / "adapter_model.safetensors")
    return {"adapters": openvino_genai.AdapterConfig(adapter, scale, mode)}
