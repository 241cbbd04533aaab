"""Which models are converted to OpenVINO, and the frequencies of their rotary embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.core.errors import LoadError
from penstock.language.gguf import Header, Tensor, Value
from penstock.runtime.conversion import half_gguf, rotation

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


# Every third value of ROPE_INIT_FUNCTIONS in transformers 5.23: 64 numbers of a head, base 500,000.
@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (LLAMA3, (1.0, 0.2922278, 0.0853971, 0.02495541, 0.007292665, 0.001371894, 7.784655e-05, 2.274893e-05,
                  6.64787e-06, 1.942693e-06, 5.677088e-07)),
        ({"type": "linear", "factor": 4.0}, (
            0.25, 0.07305696, 0.02134928, 0.006238852, 0.001823166, 0.0005327799, 0.0001556931, 4.549786e-05,
            1.329574e-05, 3.885385e-06, 1.135418e-06)),
    ],
)  # fmt: skip
def test_scaled_frequencies_are_those_of_transformers(scaling: dict[str, Any], expected: tuple[float, ...]) -> None:
    older = {"rope_theta": 500000.0, "rope_scaling": scaling}
    newer = {"rope_parameters": {"rope_theta": 500000.0, **scaling}}
    for config in (older, newer):
        assert rotation.reason(rotation.told_of(config)) == ""
        found = rotation.scaled(rotation.told_of(config), 64)
        assert found.shape == (32,)
        assert found[::3] == pytest.approx(expected, rel=1e-6)


def graph(*tables: np.ndarray[Any, Any], compressed: bool = True) -> Any:
    """Positions times each table, which lies in f16 as OpenVINO GenAI saves it."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset15 as ops

    positions = ops.parameter([1, 1, -1], np.float32, "positions")
    outs = []
    for table in tables:
        kind = np.float16 if compressed else np.float32
        made = ops.constant(table.reshape(1, -1, 1).astype(kind))
        outs.append(ops.matmul(ops.convert(made, "f32") if compressed else made, positions, False, False))
    return openvino.Model(outs, [positions], "graph")


@pytest.mark.parametrize("compressed", [False, True])
def test_frequencies_are_put_into_a_graph_exactly(compressed: bool) -> None:
    import openvino

    model = graph(rotation.plain(10000.0, 64), compressed=compressed)
    wanted = rotation.plain(10000.0, 64) / 4
    rotation.put(model, 10000.0, wanted)
    (found,) = openvino.Core().compile_model(model, "CPU")([np.full((1, 1, 1), 4000, np.float32)]).values()
    assert found.ravel() == pytest.approx(wanted * 4000, rel=1e-6)


@pytest.mark.parametrize(
    ("bases", "said"),
    [((20000.0,), "not the one of its header"), ((), "has 0 tables"), ((10000.0, 10000.0), "has 2 tables")],
)
def test_graph_with_other_frequencies_is_refused(bases: tuple[float, ...], said: str) -> None:
    model = graph(*(rotation.plain(base, 64) for base in bases), *([] if bases else [np.ones(3)]))
    with pytest.raises(LoadError, match=said):
        rotation.put(model, 10000.0, rotation.plain(10000.0, 64))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma3_text"}, "'gemma3_text'"),
        ({"model_type": "phi3", "sliding_window": 2047}, "slides"),
        ({"model_type": "phi3", "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "'longrope'"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.75}, "a part of each head"),
        ({"model_type": "qwen3", "attention_bias": True}, "biases"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16}, "slides"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor = None"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 0}}, "factor = 0"),
        ({"model_type": "llama", "rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor = 1.0 is not"),
        ({"model_type": "llama", "rope_scaling": LLAMA3 | {"low_freq_factor": float("nan")}}, "= nan"),
        ({"model_type": "llama", "rope_scaling": LLAMA3 | {"factor": float("inf")}}, "factor = inf"),
    ],
)
def test_folder_that_would_come_out_wrong_is_refused(config: dict[str, Any], said: str) -> None:
    assert said in half_gguf.folder_reason(config)


def header(architecture: str, *tensors: str, **changes: Value) -> Header:
    values: dict[str, Value] = {"embedding_length": 128, "attention.head_count": 2, "rope.dimension_count": 64}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    own = {f"{architecture}.{key}": value for key, value in values.items()}
    return Header(
        3, {"general.architecture": architecture, **own}, tuple(Tensor(n, (1,), "F32", 1, 4) for n in tensors)
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (header("llama", "blk.0.attn_q.weight", "rope_freqs.weight"), ""),
        (header("llama", rope__scaling__type="linear", rope__scaling__factor=4.0), ""),
        (header("llama", attention__key_length=96, attention__value_length=96, rope__dimension_count=96), ""),
        (header("qwen2", "blk.0.attn_q.bias"), ""),
        (header("llama", "blk.0.attn_q.bias"), "blk.0.attn_q.bias"),
        (header("qwen2", "blk.0.attn_output.bias"), "blk.0.attn_output.bias"),
        (header("llama", "blk.0.ffn_gate_exps.weight"), "ffn_gate_exps"),
        (header("llama", expert_count=8), "llama.expert_count"),
        (header("llama", rope__scaling__type="yarn", rope__scaling__factor=4.0), "'yarn'"),
        (header("llama", rope__scaling__factor=-4.0), "factor = -4.0"),
        (header("llama", rope__dimension_count=32), "32 of them rotated"),
        (header("gemma2"), "'gemma2'"),
    ],
)
def test_file_that_would_come_out_wrong_is_refused(found: Header, said: str) -> None:
    reason = half_gguf.gguf_reason(found)
    assert said in reason if said else reason == ""


@pytest.mark.parametrize(
    ("scaling", "divisor"),
    [
        ({"type": "linear", "factor": 4.0}, 4.0),
        ({"factor": 4.0}, 4.0),  # the type that llama.cpp takes where none is written
        ({"type": "linear"}, 1.0),
        ({"factor": 0.0}, 1.0),
        ({"type": "none", "factor": 4.0}, 1.0),
        ({}, 1.0),
    ],
)
def test_file_s_frequencies_are_scaled_as_llama_cpp_scales_them(scaling: dict[str, Value], divisor: float) -> None:
    found = header("llama", **{f"rope.scaling.{key}": value for key, value in scaling.items()})
    assert half_gguf.gguf_reason(found) == ""
    frequencies = rotation.scaled(half_gguf.rotation_of(found), 64)
    assert frequencies == pytest.approx(rotation.plain(10000.0, 64) / divisor)


def test_the_older_key_of_linear_scaling_counts_where_the_newer_is_missing() -> None:
    old, both = {"rope.scale_linear": 2.0}, {"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}
    assert half_gguf.rotation_of(header("llama", **old))["factor"] == 2.0
    assert half_gguf.rotation_of(header("llama", **both))["factor"] == 4.0
