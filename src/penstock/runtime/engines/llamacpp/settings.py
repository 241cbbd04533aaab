"""How llama.cpp is set up for a model: sizes from the header and the memory, and the engine's own options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.core.errors import LoadError
from penstock.core.language import EngineInfo
from penstock.core.nearest import nearest
from penstock.language import gguf
from penstock.language.files import ModelFiles
from penstock.runtime.engines import EngineContext

_DEFAULT_RUNNING = 16
_DEFAULT_KV_BYTES = 512 << 20  # llama.cpp takes and touches all of it at load
_DEFAULT_BATCH = 512  # tokens of prompts in one step: more delays the tokens of those who run by more
_SPARE_TOKENS = 64  # the last token of each sequence may lie in the cache a step longer than it is counted
_MOST_TOP_LOGPROBS = 20  # of the OpenAI API
# Longer than any step of a model that can be served at all: a batch of a prompt is a step too.
_DEFAULT_STALL_S = 60
_OPTIONS = ("batch_tokens", "flash_attention", "gpu_layers", "kv_type", "pooling", "stall_s")
_KV_BITS: Mapping[str, float] = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q4_0": 4.5}
_KV_NUMBERS: Mapping[str, int] = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}  # enum ggml_type of ggml.h
_POOLINGS: Mapping[str, int] = {"mean": 1, "cls": 2, "last": 3}  # enum llama_pooling_type of llama.h


@dataclass(frozen=True, slots=True)
class Settings:
    """What is decided before the load. `pooling` is None of a model that generates, -1 where its header says it."""

    context_tokens: int
    kv_capacity: int  # tokens of all sequences
    kv_bytes_per_token: int
    max_running: int
    batch_tokens: int
    kv_type: str
    pooling: int | None
    gpu_layers: int
    main_gpu: int
    flash_attention: bool | None
    threads: int
    adapters: Mapping[str, Path]
    stall_s: int  # without a word from llama.cpp, until the worker is ended


def decide(files: ModelFiles, context: EngineContext) -> Settings:
    """The settings for a model. Raises: LoadError for an option that is unknown or has an impossible value."""
    options = dict(context.options)
    for name in options:
        if name not in _OPTIONS:
            raise LoadError(f"the engine llamacpp has no option {name!r}{nearest(name, _OPTIONS)}")
    if context.dtype:
        raise LoadError(f"dtype = {context.dtype!r}: a GGUF file has its precision; llamacpp does not convert it")
    for name, path in context.adapters.items():
        if path.suffix != ".gguf":
            raise LoadError(f"lora.{name} = {str(path)!r}: llama.cpp takes adapters as .gguf (convert_lora_to_gguf.py)")
    kv_type = _one_of(options, "kv_type", _KV_BITS, "f16")
    pooled = "pooling" in options or files.task == "embed"
    pooling = _POOLINGS[_one_of(options, "pooling", _POOLINGS, "mean")] if "pooling" in options else -1
    own_context = _number(files, "context_length") or 4096
    running = 1 if pooled else context.max_running or _DEFAULT_RUNNING
    per_token = 0 if files.task == "embed" else _kv_bytes_per_token(files, _KV_BITS[kv_type])
    wanted = min(context.context_tokens or own_context, own_context)
    if context.kv_cache_bytes:
        held = context.kv_cache_bytes // max(per_token, 1)
    else:
        held = max(_DEFAULT_KV_BYTES // max(per_token, 1), context.context_tokens or 0)
    capacity = max(min(held, wanted * running), 1)
    if context.context_tokens and capacity < wanted:
        raise LoadError(
            f"kv_cache_bytes = {context.kv_cache_bytes} holds {capacity} tokens of {per_token} bytes, fewer than "
            f"context_tokens = {wanted}"
        )
    device, _, number = context.device.partition(":")
    layers = _whole(options, "gpu_layers", 999 if device == "cuda" else 0)
    flash = options.get("flash_attention")
    if flash is not None and not isinstance(flash, bool):
        raise LoadError(f"flash_attention = {flash!r}: write true or false")
    return Settings(
        min(wanted, capacity), capacity, per_token, running, _whole(options, "batch_tokens", _DEFAULT_BATCH), kv_type,
        pooling if pooled else None, layers, int(number or 0), flash, max(context.threads, 1), context.adapters,
        _whole(options, "stall_s", _DEFAULT_STALL_S),
    )  # fmt: skip


def parameters(xllamacpp: object, files: ModelFiles, settings: Settings) -> object:
    """xllamacpp's CommonParams for these settings."""
    made = xllamacpp.CommonParams()  # type: ignore[attr-defined]  # the package has no types
    made.model.path = os.fspath(files.path)
    made.verbosity = 1  # errors; 2 writes a line for each request
    made.ui = False
    made.fit_params = False  # it would change sizes behind our back
    made.cache_ram_mib = 0  # copies of old prompts outside of the cache: up to 8 GiB by default
    made.n_threads_http = settings.max_running + 4  # a connection takes one as long as it lasts
    made.n_parallel = settings.max_running + 1  # one for asking again, see LlamaEngine
    made.kv_unified = True
    made.n_ctx = settings.kv_capacity + _SPARE_TOKENS
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = settings.threads
    # Threads that have nothing to do sleep at once: spinning, they take the time of whoever else computes.
    made.cpuparams.poll = made.cpuparams_batch.poll = 0
    made.n_gpu_layers, made.main_gpu = settings.gpu_layers, settings.main_gpu
    made.split_mode = xllamacpp.llama_split_mode.LLAMA_SPLIT_MODE_NONE  # type: ignore[attr-defined]
    made.n_batch = made.n_ubatch = settings.batch_tokens
    kinds = {int(kind): kind for kind in xllamacpp.ggml_type}  # type: ignore[attr-defined]
    made.cache_type_k = made.cache_type_v = kinds[_KV_NUMBERS[settings.kv_type]]
    if settings.flash_attention is not None:
        made.flash_attn_type = xllamacpp.llama_flash_attn_type(int(settings.flash_attention))  # type: ignore[attr-defined]
    if settings.pooling is not None:
        made.embedding = True
        made.n_parallel = 1  # with more, llama.cpp aborts as it loads: ggml_can_mul_mat of the pooled outputs
        made.pooling_type = xllamacpp.llama_pooling_type(settings.pooling)  # type: ignore[attr-defined]
        # All of a text must be computed in one step: https://github.com/ggml-org/llama.cpp/issues/12836
        made.n_batch = made.n_ubatch = settings.context_tokens
    made.lora_init_without_apply = True
    made.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(os.fspath(path), 0.0)  # type: ignore[attr-defined]
        for path in settings.adapters.values()
    ]
    return made


def info(files: ModelFiles, settings: Settings, version: str) -> EngineInfo:
    """What the loaded model is and can do."""
    header = gguf.read_header(files.path)
    generates = settings.pooling is None
    tokens = files.config.get("tokenizer.ggml.tokens")
    return EngineInfo(
        engine="llamacpp", engine_version=version, context_tokens=settings.context_tokens,
        vocabulary=len(tokens) if isinstance(tokens, list) else 0, generates=generates, embeds=not generates,
        grammars=frozenset({"ebnf"}) if generates else frozenset(), top_logprobs=_MOST_TOP_LOGPROBS, logit_bias=True,
        min_p=True, min_tokens=True, ignore_eos=True, adapters="request" if settings.adapters else "none",
        adapter_names=tuple(settings.adapters), prefix_cache=generates, max_running=settings.max_running,
        kv_bytes_per_token=settings.kv_bytes_per_token, kv_capacity=settings.kv_capacity,
        weights_bytes=sum(tensor.size_bytes for tensor in header.tensors),
        embedding_size=0 if generates else _number(files, "embedding_length"), precision=_precision(header),
    )  # fmt: skip


def _precision(header: gguf.Header) -> str:
    """The type that most of the weights have."""
    sizes: dict[str, int] = {}
    for tensor in header.tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.elements
    return max(sizes, key=lambda kind: sizes[kind]).lower() if sizes else ""


def _number(files: ModelFiles, name: str) -> int:
    """A number of the architecture; the largest where each layer has its own."""
    value = files.config.get(f"{files.architecture}.{name}")
    if isinstance(value, list):
        value = max((item for item in value if isinstance(item, int)), default=0)
    return value if isinstance(value, int) else 0


def _kv_bytes_per_token(files: ModelFiles, bits: float) -> int:
    """Keys and values of all layers, as llama.cpp lays them out. Source: llama-kv-cache.cpp (n_embd_k_gqa)."""
    heads = _number(files, "attention.head_count") or 1
    kv_heads = _number(files, "attention.head_count_kv") or heads
    size = _number(files, "embedding_length") // heads
    key, value = (_number(files, f"attention.{part}_length") or size for part in ("key", "value"))
    return round(_number(files, "block_count") * kv_heads * (key + value) * bits / 8)


def _one_of(options: Mapping[str, object], name: str, known: Mapping[str, object], default: str) -> str:
    value = options.get(name, default)
    if value not in known:
        raise LoadError(f"{name} = {value!r}: there are {', '.join(known)}")
    return str(value)


def _whole(options: Mapping[str, object], name: str, default: int) -> int:
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LoadError(f"{name} = {value!r}: write a whole number")
    return value
