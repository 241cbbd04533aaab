"""The memory of language models: shapes out of headers, cache arithmetic, what fits and what is refused."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

from penstock.core.errors import InvalidInput, LoadError
from penstock.language import memory
from penstock.language.files import ModelFiles, look
from penstock.language.memory.layers import of_config

GIB = 1 << 30
LLAMACPP, OPENVINO, VLLM = (memory.ENGINES[name] for name in ("llamacpp", "openvino", "vllm"))


def folder(
    tmp_path: Path, tensors: dict[str, tuple[str, list[int], int]], *, shards: int = 1, **config: object
) -> Path:
    """A Hugging Face folder whose weights are holes in a file."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "tokenizer.json").write_text("{}")
    told = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100,
        "max_position_embeddings": 512,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(told | config))
    names = list(tensors)
    parts = [names[index::shards] for index in range(shards)]
    for index, part in enumerate(parts):
        name = "model.safetensors" if shards == 1 else f"model-{index + 1:05}-of-{shards:05}.safetensors"
        at, header = 0, {}
        for tensor in part:
            kind, shape, size = tensors[tensor]
            header[tensor] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        with (path / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
    if shards > 1:
        where = {
            tensor: f"model-{index + 1:05}-of-{shards:05}.safetensors"
            for index, part in enumerate(parts)
            for tensor in part
        }
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return path


SMALL = {"model.embed_tokens.weight": ("BF16", [100, 64], 12800), "model.norm.weight": ("F32", [64], 256)}


@pytest.mark.parametrize("shards", [1, 2])
def test_safetensors_are_summed_over_all_files(tmp_path: Path, shards: int) -> None:
    shape = memory.read(look(folder(tmp_path, SMALL, shards=shards)))
    assert shape.parameters == 6464
    assert sum(tensor.size_bytes for tensor in shape.tensors) == 13056
    assert shape.precision == "bf16"
    assert [tensor.matrix for tensor in sorted(shape.tensors, key=lambda one: one.name)] == [True, False]


def test_files_that_the_index_does_not_name_do_not_count(tmp_path: Path) -> None:
    path = folder(tmp_path, SMALL, shards=2)
    (path / "consolidated.safetensors").write_bytes(b"not even one")
    assert memory.read(look(path)).parameters == 6464


def test_an_index_that_names_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, SMALL, shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InvalidInput, match="lacks model-00002-of-00002"):
        memory.read(look(path))
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(InvalidInput, match="no file beside it"):
        memory.read(look(path))


@pytest.mark.parametrize(
    "tensor",
    [("F32", [8], 31), ("F32", [1 << 40], 32), ("F32", "many", 32), ("F32", [8], 1 << 50)],
)
def test_impossible_tensors_are_refused_by_name(tmp_path: Path, tensor: tuple[str, list[int], int]) -> None:
    path = folder(tmp_path, SMALL)
    kind, axes, size = tensor
    text = json.dumps({"w": {"dtype": kind, "shape": axes, "data_offsets": [0, size]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(31))
    with pytest.raises(InvalidInput, match="tensor w is impossible"):
        memory.read(look(path))


@pytest.mark.parametrize("data", [b"", b"1234567", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = folder(tmp_path, SMALL)
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(InvalidInput, match="safetensors file"):
        memory.read(look(path))


def windows(**config: object) -> list[int | None]:
    base = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 6}
    return [layer.window for layer in of_config(base | config)]


def test_each_family_has_its_windows() -> None:
    assert windows(model_type="llama") == [None] * 6
    assert windows(model_type="mistral", sliding_window=4096) == [4096] * 6
    assert windows(model_type="mistral", sliding_window=None) == [None] * 6
    assert windows(model_type="gemma2", sliding_window=4096) == [4096, None] * 3
    assert windows(model_type="gemma3_text", sliding_window=512) == [512] * 5 + [None]
    assert windows(model_type="gemma3_text", sliding_window=512, sliding_window_pattern=3) == [512, 512, None] * 2
    assert windows(model_type="qwen2", sliding_window=512, use_sliding_window=False) == [None] * 6
    qwen = windows(model_type="qwen2", sliding_window=512, use_sliding_window=True, max_window_layers=4)
    assert qwen == [None] * 4 + [512] * 2
    types = ["sliding_attention", "full_attention"] * 3
    assert windows(model_type="gpt_oss", sliding_window=128, layer_types=types) == [128, None] * 3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "jamba"}, "jamba mixes"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention"] * 6}, "linear_attention"),
        ({"model_type": "gemma3", "sliding_window": 9, "layer_types": ["full_attention"]}, "layer_types for 1"),
        ({"num_hidden_layers": 1 << 30}, "claims 1073741824 layers"),
        ({"num_attention_heads": -4}, "num_attention_heads = -4"),
        ({"hidden_size": None}, "no hidden_size"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(config: dict[str, object], words: str) -> None:
    base = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 6}
    with pytest.raises(InvalidInput, match=words):
        of_config(base | config)


def test_the_language_part_of_a_model_of_several_senses_is_read(tmp_path: Path) -> None:
    inner = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    shape = memory.read(look(folder(tmp_path, SMALL, text_config=inner)))
    assert (shape.hidden, len(shape.layers), shape.layers[0].kv_heads, shape.layers[0].key_size) == (32, 3, 1, 16)


def shape_of(*layers: memory.Layer, **more: object) -> memory.Shape:
    told: dict[str, object] = {
        "architecture": "llama", "form": "huggingface", "generates": True,
        "tensors": (memory.Tensor("w", "bf16", 1 << 30, 2 << 30, True),), "layers": layers, "hidden": 64, "heads": 4,
        "feed_forward": 128, "vocabulary": 1000, "context_tokens": 32768, "tied": True,
    }  # fmt: skip
    return memory.Shape(**(told | more))  # type: ignore[arg-type]


LLAMA_8B = shape_of(*[memory.Layer(8, 128, 128)] * 32)


@pytest.mark.parametrize(
    ("kind", "expected"),
    # 2 · layers · heads · size · bytes, as published for Llama 3 8B: 128 KiB a token at 16 bits.
    [("f16", 131072), ("f32", 262144), ("f8", 65536), ("q8_0", 69632), ("q4_0", 36864)],
)
def test_cache_of_a_token(kind: str, expected: int) -> None:
    assert memory.cache_bytes(LLAMA_8B, kind, 1) == expected
    assert memory.cache_bytes(LLAMA_8B, kind, 1000) == 1000 * expected


def test_openvinos_cache_of_8_bits_as_measured() -> None:
    smollm2 = shape_of(*[memory.Layer(3, 64, 64)] * 30)
    assert memory.cache_bytes(smollm2, "u8", 32, block=32) == 32 * 13680


def test_blocks_round_up_and_windows_cap() -> None:
    layers = [memory.Layer(1, 8, 8, 100), memory.Layer(1, 8, 8)]
    both = memory.cache_bytes(shape_of(*layers), "f16", 1000, block=16, windows=True, ahead=12)
    assert both == (112 + 1008) * 32
    assert memory.cache_bytes(shape_of(*layers), "f16", 1000, block=16) == 2 * 1008 * 32


def test_latents_where_the_engine_keeps_them() -> None:
    deepseek = {
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_attention_heads": 128, "num_hidden_layers": 61,
        "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    }  # fmt: skip
    shape = shape_of(*of_config(deepseek))
    assert memory.cache_bytes(shape, "bf16", 1, latent=True) == 61 * 576 * 2  # 70,272 bytes, as the paper says
    assert memory.cache_bytes(shape, "bf16", 1) == 61 * 128 * (192 + 128) * 2


def test_states_count_by_sequence_not_by_token() -> None:
    mamba = {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "state_size": 16, "conv_kernel": 4}
    shape = shape_of(*of_config(mamba))
    expected = 24 * 4 * (1536 * 4 + 1536 * 16)
    assert memory.cache_bytes(shape, "f16", 1) == memory.cache_bytes(shape, "f16", 10_000) == expected


def test_dtypes_change_the_weights_and_unknown_ones_name_the_nearest() -> None:
    def weights(dtype: str) -> int:
        return memory.estimate(LLAMA_8B, VLLM, memory.Wish(1, 1, dtype)).weights

    assert weights("") == 2 * GIB
    assert weights("int8") == math.ceil((1 << 30) * 8.05 / 8)
    assert weights("int4") < weights("q4_1") < weights("q8_0") < weights("f16") < weights("f32") == 4 * GIB
    with pytest.raises(InvalidInput, match="int4"):
        weights("int44")
    with pytest.raises(InvalidInput, match="vllm has no KV cache of 'q9'"):
        memory.estimate(LLAMA_8B, VLLM, memory.Wish(1, 1, "", "q9"))


@pytest.mark.parametrize("terms", memory.ENGINES.values(), ids=memory.ENGINES)
def test_the_largest_that_fits_fits_and_one_more_does_not(terms: memory.EngineTerms) -> None:
    free = 24 * GIB
    wish = memory.Wish(4096, 4)

    def total(context: int, concurrency: int) -> int:
        return memory.estimate(LLAMA_8B, terms, memory.Wish(context, concurrency)).total

    sequences = memory.largest_concurrency(LLAMA_8B, terms, wish, free)
    assert total(4096, sequences) <= 0.9 * free < total(4096, sequences + 1)
    tokens = memory.largest_context(LLAMA_8B, terms, wish, free)
    assert total(tokens, 4) <= 0.9 * free and (tokens == 32768 or total(tokens + 1, 4) > 0.9 * free)
    assert memory.largest_concurrency(LLAMA_8B, terms, wish, GIB) == 0


@pytest.mark.parametrize("free", [12 * GIB, 16 * GIB, 24 * GIB, 80 * GIB])
@pytest.mark.parametrize("terms", memory.ENGINES.values(), ids=memory.ENGINES)
def test_what_is_chosen_fits_and_what_is_given_stays(terms: memory.EngineTerms, free: int) -> None:
    chosen = memory.plan(LLAMA_8B, terms, free)
    assert chosen.fits
    assert chosen.kv_cache_bytes >= memory.cache_bytes(LLAMA_8B, chosen.estimate.cache_kind, chosen.context_tokens)
    given = memory.plan(LLAMA_8B, terms, free, context_tokens=1000, max_running=3)
    assert (given.context_tokens, given.max_running) == (1000, 3)
    assert memory.refusal("m", LLAMA_8B, terms, chosen, memory.Wish(chosen.context_tokens)) == ""


def test_a_refusal_has_the_numbers_and_a_way_that_works() -> None:
    free = 8 * GIB
    wish = memory.Wish(32768, 8)
    greedy = memory.plan(LLAMA_8B, LLAMACPP, free, context_tokens=32768, max_running=8, kv_cache_bytes=32 * GIB)
    said = memory.refusal("eight", LLAMA_8B, LLAMACPP, greedy, wish)
    assert said.startswith("eight does not fit: with llamacpp, 8 sequences of 32768 tokens take 34.1 GiB")
    assert "7.2 GiB may be used of 8.0 GiB" in said
    held = int(said.split("kv_cache_bytes = ")[1].split(" ")[0])
    assert memory.plan(LLAMA_8B, LLAMACPP, free, context_tokens=32768, max_running=8, kv_cache_bytes=held).fits
    long = memory.plan(LLAMA_8B, LLAMACPP, free, context_tokens=1 << 17)
    tokens = int(memory.refusal("m", LLAMA_8B, LLAMACPP, long, wish).split("context_tokens = ")[1].split(" ")[0])
    assert memory.plan(LLAMA_8B, LLAMACPP, free, context_tokens=tokens).fits
    cramped = memory.plan(LLAMA_8B, LLAMACPP, free, context_tokens=4096, kv_cache_bytes=1000)
    assert "kv_cache_bytes = 1000 holds no sequence of 4096" in memory.refusal("m", LLAMA_8B, LLAMACPP, cramped, wish)
    hopeless = memory.plan(LLAMA_8B, LLAMACPP, GIB)
    assert "larger machine" in memory.refusal("m", LLAMA_8B, LLAMACPP, hopeless, memory.Wish(256, 1))


def test_the_runtime_fills_what_is_open_and_refuses_what_cannot_fit(tmp_path: Path) -> None:
    from penstock.runtime.engines import EngineContext
    from penstock.runtime.language.fit import fitted

    found = look(folder(tmp_path, SMALL))
    filled = fitted(found, EngineContext("m"), "openvino", 2 * GIB)
    assert filled.context_tokens == 512 and filled.max_running == 16 and filled.kv_cache_bytes
    kept = fitted(found, EngineContext("m", context_tokens=128, max_running=2), "openvino", 2 * GIB)
    assert (kept.context_tokens, kept.max_running) == (128, 2)
    with pytest.raises(LoadError, match="m does not fit"):
        fitted(found, EngineContext("m"), "openvino", 1 << 20)
    unknown = EngineContext("m")
    assert fitted(found, unknown, "another") is unknown
    echo = ModelFiles(tmp_path / "e.llmecho", "echo", "generate", "echo")
    assert fitted(echo, unknown, "openvino", 1) is unknown


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_cut_by_the_group(tmp_path: Path, version: int) -> None:
    from penstock.runtime.workers.free_memory import free_bytes

    meminfo, membership = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:  2048 kB\nMemAvailable:   1024 kB\n")
    group = tmp_path / "fs" / ("memory" if version == 1 else "") / "inner"
    group.mkdir(parents=True)
    membership.write_text("5:memory:/inner\n" if version == 1 else "0::/inner\n")
    limit, used, unused = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    (group / used).write_text("300000\n")
    (group / "memory.stat").write_text(f"anon 1\n{unused} 100000\n")
    (group / limit).write_text("max\n" if version == 2 else f"{(1 << 63) - 4096}\n")
    assert free_bytes(meminfo, tmp_path / "fs", membership) == 1 << 20
    (group / limit).write_text("500000\n")
    assert free_bytes(meminfo, tmp_path / "fs", membership) == 300_000
    assert free_bytes(tmp_path / "none", tmp_path / "none", membership) is None
