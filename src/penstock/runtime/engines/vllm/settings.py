"""Options of the engine vllm, and what vLLM is started with for them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from penstock.core.errors import LoadError
from penstock.core.nearest import nearest
from penstock.language.files import ModelFiles
from penstock.runtime.engines import EngineContext

OPTIONS = ("tensor_parallel", "kv_cache_dtype", "batch_tokens", "eager", "quantization", "max_lora_rank",
           "kv_transfer_config")  # fmt: skip
MOST_LOGPROBS = 20
_DTYPES = {"": "auto", "f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_GIB = 1 << 30
_GPU_SHARE = 0.9  # of a whole GPU, vLLM's own default: the rest is for what it does not plan


def prepare(context: EngineContext) -> None:
    """Sets what vLLM reads from its environment, before it is imported."""
    os.environ.update(
        VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1",
        VLLM_CONFIGURE_LOGGING="1",
    )  # fmt: skip
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if context.device == "cpu":
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the kernel places threads, as for other models
        os.environ["OMP_NUM_THREADS"] = str(max(1, context.threads))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(_cpu_cache_gib(context))
    else:
        index = context.device.partition(":")[2]
        if index and "tensor_parallel" not in context.options:
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            listed = [name for name in seen.split(",") if name]
            number = int(index)
            os.environ["CUDA_VISIBLE_DEVICES"] = listed[number] if number < len(listed) else index


def _cpu_cache_gib(context: EngineContext) -> int:
    """Whole GiB, which is all that vLLM's CPU backend takes: rounded up, so that what was promised fits."""
    return max(1, math.ceil((context.kv_cache_bytes or _GIB) / _GIB))


def arguments(files: ModelFiles, context: EngineContext) -> dict[str, Any]:
    """Keyword arguments of `AsyncEngineArgs`. Raises: LoadError for an option that is unknown or impossible."""
    options = dict(context.options)
    if unknown := [name for name in options if name not in OPTIONS]:
        raise LoadError(f"engine vllm has no option {unknown[0]!r}{nearest(unknown[0], OPTIONS)}")
    if context.dtype not in _DTYPES:
        known = ", ".join(name for name in _DTYPES if name)
        raise LoadError(f"dtype = {context.dtype!r}: engine vllm computes in {known}; weights may be quantised already")
    on_cpu = context.device == "cpu"
    found: dict[str, Any] = {
        "model": str(files.path), "tokenizer": str(files.path), "dtype": _DTYPES[context.dtype],
        "trust_remote_code": context.trusted, "load_format": "auto" if context.trusted else "safetensors",
        "enable_prefix_caching": context.prefix_cache, "scheduling_policy": "priority",
        "max_logprobs": MOST_LOGPROBS, "enable_log_requests": False, "disable_log_stats": True,
        "generation_config": "auto",
    }  # fmt: skip
    if on_cpu and not context.dtype:
        found["dtype"] = "float32"  # most CPUs emulate bf16, at a fraction of the speed
    # Compiling for a CPU takes a compiler and minutes; a GPU's graphs are worth their half a minute.
    found["enforce_eager"] = _flag(options, "eager", on_cpu)
    if context.context_tokens is not None:
        found["max_model_len"] = context.context_tokens
    if context.max_running is not None:
        found["max_num_seqs"] = context.max_running
    if not on_cpu:
        found["gpu_memory_utilization"] = round(_GPU_SHARE * context.device_fraction, 4)
        if context.kv_cache_bytes is not None:
            found["kv_cache_memory_bytes"] = context.kv_cache_bytes
    for name, argument in (("tensor_parallel", "tensor_parallel_size"), ("batch_tokens", "max_num_batched_tokens")):
        if name in options:
            found[argument] = _number(options, name)
    for name in ("kv_cache_dtype", "quantization"):
        if name in options:
            found[name] = str(options[name])
    if context.adapters:
        found.update(enable_lora=True, max_loras=min(4, len(context.adapters)), max_cpu_loras=len(context.adapters))
        found["max_lora_rank"] = _number(options, "max_lora_rank") if "max_lora_rank" in options else _rank(context)
    if "kv_transfer_config" in options:
        found["kv_transfer_config"] = transfer(options["kv_transfer_config"])
    if files.task == "embed":
        found["runner"] = "pooling"
    return found


def transfer(text: object) -> Mapping[str, Any]:
    """The object in `kv_transfer_config`. Raises: LoadError."""
    try:
        found = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"kv_transfer_config is no JSON: {error}") from None
    if not isinstance(found, dict) or "kv_connector" not in found:
        raise LoadError('kv_transfer_config: write a JSON object with "kv_connector" and "kv_role", as vLLM takes it')
    return found


def _rank(context: EngineContext) -> int:
    """The least of the ranks that vLLM has memory for which holds every adapter."""
    from penstock.language.files import read_json

    most = 1
    for name, path in context.adapters.items():
        rank = read_json(path / "adapter_config.json").get("r")
        if not isinstance(rank, int) or not 1 <= rank <= 512:
            raise LoadError(f"adapter {name}: its rank is {rank!r}; vLLM takes 1 to 512")
        most = max(most, rank)
    return next(rank for rank in (8, 16, 32, 64, 128, 256, 320, 512) if rank >= most)


def _number(options: Mapping[str, object], name: str) -> int:
    value = options[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LoadError(f"{name} = {value!r}: write a whole number above 0")
    return value


def _flag(options: Mapping[str, object], name: str, default: bool) -> bool:
    value = options.get(name, default)
    if not isinstance(value, bool):
        raise LoadError(f"{name} = {value!r}: write true or false")
    return value
