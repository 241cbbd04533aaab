"""ONNX: types, which models are batched, threads, and whose fault an error is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.core.errors import InvalidInput, LoadError
from penstock.core.servable import Borrower, LoadContext, Servable
from penstock.core.tensor import parse_spec
from penstock.runtime import onnx_values
from penstock.runtime.adapters.onnx import plug

onnx = pytest.importorskip("onnx", reason="makes its models with the onnx package: pip install onnx")

FLOAT, INT64, STRING, FLOAT16, BFLOAT16 = 1, 7, 8, 10, 16


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: tuple[Any, ...] = ()) -> Path:
    graph = onnx.helper.make_graph(nodes, "made", inputs, outputs, list(weights))
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    )
    model.ir_version = 9
    path.write_bytes(model.SerializeToString())
    return path


def value(name: str, kind: int, shape: list[Any] | None) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def node(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return onnx.helper.make_node(operator, inputs, outputs, **attributes)


def identity(path: Path, kind: int, shape_in: list[Any] | None, shape_out: list[Any] | None) -> Path:
    return save(path, [node("Identity", ["x"], ["y"])], [value("x", kind, shape_in)], [value("y", kind, shape_out)])


def load(path: Path, **context: Any) -> Servable:
    return plug.load(path, LoadContext("model", 1, **context))


@pytest.mark.parametrize(
    ("kind", "datatype", "dtype"),
    [
        (1, "FP32", "f4"), (2, "UINT8", "u1"), (3, "INT8", "i1"), (4, "UINT16", "u2"), (5, "INT16", "i2"),
        (6, "INT32", "i4"), (7, "INT64", "i8"), (9, "BOOL", "?"), (10, "FP16", "f2"), (11, "FP64", "f8"),
        (12, "UINT32", "u4"), (13, "UINT64", "u8"),
    ],
)  # fmt: skip
def test_every_number_type_passes_unchanged(kind: int, datatype: str, dtype: str, tmp_path: Path) -> None:
    servable = load(identity(tmp_path / "m.onnx", kind, ["n", 2], ["n", 2]))
    assert [spec.datatype for spec in servable.signature.inputs + servable.signature.outputs] == [datatype] * 2
    x = np.array([[0, 1], [1, 0]], dtype)
    y = servable.predict({"x": x}, {})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


def test_text_goes_in_and_out_as_bytes(tmp_path: Path) -> None:
    servable = load(identity(tmp_path / "m.onnx", STRING, ["n"], ["n"]))
    x = np.array([b"one", "zwölf".encode(), b""], dtype=object)
    assert servable.predict({"x": x}, {})["y"].tolist() == x.tolist()
    with pytest.raises(InvalidInput, match="UTF-8"):
        servable.predict({"x": np.array([b"\xff"], dtype=object)}, {})


def test_bfloat16_is_float32_in_memory(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [node("Cast", ["x"], ["f"], to=FLOAT), node("Add", ["f", "z"], ["g"]), node("Cast", ["g"], ["y"], to=BFLOAT16)],
        [value("x", BFLOAT16, ["n", 2]), value("z", FLOAT, ["n", 2])],
        [value("y", BFLOAT16, ["n", 2]), value("g", FLOAT, ["n", 2])],
    )
    servable = load(path)
    assert [spec.datatype for spec in servable.signature.inputs] == ["BF16", "FP32"]
    x = np.array([[1.0, 2.5], [-3.0, 1.00390625]], np.float32)  # the last lies between two bfloat16 values
    outputs = servable.predict({"x": x, "z": np.ones((2, 2), np.float32)}, {})
    np.testing.assert_array_equal(outputs["g"], [[2.0, 3.5], [-2.0, 2.0]])
    np.testing.assert_array_equal(outputs["y"], [[2.0, 3.5], [-2.0, 2.0]])
    assert outputs["y"].dtype == np.float32


@pytest.mark.parametrize(
    ("shape_in", "shape_out", "batchable"),
    [
        (["n", 2], ["n", 2], True),
        ([None, 2], ["n", 2], True),
        (["n", 2], ["m", 2], False),  # two names are two lengths
        ([1, 2], [1, 2], False),
        (["n"], ["n"], True),
        ([], [], False),
    ],
)
def test_batched_only_with_one_axis_0_of_any_length(
    shape_in: list[Any], shape_out: list[Any], batchable: bool, tmp_path: Path
) -> None:
    assert load(identity(tmp_path / "m.onnx", FLOAT, shape_in, shape_out)).signature.batchable is batchable


def test_declared_shapes_decide_batching_where_the_file_does_not_say(tmp_path: Path) -> None:
    path = identity(tmp_path / "m.onnx", FLOAT, ["n", "k"], ["m", "k"])
    declared = load(path, inputs=(parse_spec("x", "f4[n, 4]"),), outputs=(parse_spec("y", "f4[n, 4]"),))
    assert declared.signature.batchable
    assert declared.signature.inputs[0].shape == (-1, 4)


@pytest.mark.parametrize("declaration", ["f8[n, 2]", "f4[n]", "f4[n, 3]"])
def test_declaration_that_contradicts_the_model_is_refused(declaration: str, tmp_path: Path) -> None:
    path = identity(tmp_path / "m.onnx", FLOAT, ["n", 2], ["n", 2])
    with pytest.raises(LoadError, match="declared"):
        load(path, inputs=(parse_spec("x", declaration),))
    with pytest.raises(LoadError, match="no input 'z'"):
        load(path, inputs=(parse_spec("z", "f4[n, 2]"),))


def test_only_declared_outputs_are_computed(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [node("Identity", ["x"], ["a"]), node("Neg", ["x"], ["b"])],
        [value("x", FLOAT, ["n"])],
        [value("a", FLOAT, ["n"]), value("b", FLOAT, ["n"])],
    )
    servable = load(path, outputs=(parse_spec("b", "f4[n]"),))
    assert list(servable.predict({"x": np.ones(2, np.float32)}, {})) == ["b"]


def test_input_the_model_cannot_take_is_the_callers_fault(tmp_path: Path) -> None:
    weights = onnx.helper.make_tensor("w", FLOAT, [3, 2], range(6))
    path = save(
        tmp_path / "m.onnx",
        [node("Gather", ["w", "x"], ["y"])],
        [value("x", INT64, ["n"])],
        [value("y", FLOAT, ["n", 2])],
        (weights,),
    )
    with pytest.raises(InvalidInput, match="the model refused the input: indices element out of data bounds") as caught:
        load(path).predict({"x": np.array([9])}, {})
    assert "onnxruntime_src" not in str(caught.value)


def test_zipmap_becomes_one_tensor_with_named_classes(tmp_path: Path) -> None:
    skl2onnx = pytest.importorskip("skl2onnx", reason="needs skl2onnx: pip install skl2onnx")
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    classes = np.array(["cat", "dog", "eel"])[rng.integers(0, 3, 60)]
    model = linear.LogisticRegression().fit(x, classes)
    path = tmp_path / "m.onnx"
    path.write_bytes(skl2onnx.to_onnx(model, x[:1]).SerializeToString())
    servable = load(path)
    labels, probabilities = servable.signature.outputs
    assert (labels.datatype, probabilities.datatype, probabilities.shape) == ("BYTES", "FP32", (-1, 3))
    assert probabilities.labels == ("cat", "dog", "eel")
    assert servable.signature.batchable
    outputs = servable.predict({"X": x[:5]}, {})
    assert [item.decode() for item in outputs[labels.name]] == model.predict(x[:5]).tolist()
    np.testing.assert_allclose(outputs[probabilities.name], model.predict_proba(x[:5]), atol=1e-5)


def test_types_no_protocol_carries_are_refused_with_the_type(tmp_path: Path) -> None:
    sequence = onnx.helper.make_tensor_sequence_value_info("y", FLOAT, ["n"])
    path = save(tmp_path / "m.onnx", [node("SequenceConstruct", ["x"], ["y"])], [value("x", FLOAT, ["n"])], [sequence])
    with pytest.raises(LoadError, match=r"seq\(tensor\(float\)\)"):
        load(path)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_borrowed_threads_are_in_a_session_of_their_own_that_answers_the_same(tmp_path: Path) -> None:
    path = identity(tmp_path / "m.onnx", FLOAT, ["n"], ["n"])
    first = load(path)  # what ONNX Runtime starts once per process is there now
    before = set(os.listdir("/proc/self/task"))
    servable = load(path, threads=2, borrowed_threads=2)
    assert len(set(os.listdir("/proc/self/task")) - before) == (2 - 1) + (4 - 1)
    assert servable.signature.metadata["borrowed_threads"] == "2"
    assert isinstance(servable, Borrower)
    x = np.arange(5, dtype="f4")
    for on in (True, False, True):
        servable.borrow(on)
        np.testing.assert_array_equal(next(iter(servable.predict({"x": x}, {}).values())), x)
    servable.close()
    first.close()


def test_one_thread_starts_no_helper_threads(tmp_path: Path) -> None:
    path = identity(tmp_path / "m.onnx", FLOAT, ["n"], ["n"])
    first = load(path)
    before = set(os.listdir("/proc/self/task"))
    second = load(path, threads=1)
    assert set(os.listdir("/proc/self/task")) == before
    first.close()
    second.close()


def test_device_that_is_not_there_says_what_to_install(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(LoadError, match="onnxruntime-gpu"):
        load(identity(tmp_path / "m.onnx", FLOAT, ["n"], ["n"]), device="cuda:0")


def test_options_are_checked_and_reach_the_session(tmp_path: Path) -> None:
    path = identity(tmp_path / "m.onnx", FLOAT, ["n"], ["n"])
    with pytest.raises(LoadError, match="one of disabled, basic, extended, all"):
        load(path, options={"graph_optimization_level": "much"})
    with pytest.raises(LoadError, match="one of sequential, parallel"):
        load(path, options={"execution_mode": "both"})
    with pytest.raises(LoadError, match="has no NoSuchProvider"):
        load(path, options={"providers": "NoSuchProvider"})
    chosen = load(path, options={"providers": "CPUExecutionProvider", "graph_optimization_level": "disabled"})
    assert chosen.signature.metadata["providers"] == "CPUExecutionProvider"


def test_metadata_names_producer_and_operator_sets(tmp_path: Path) -> None:
    path = identity(tmp_path / "m.onnx", FLOAT, ["n"], ["n"])
    assert onnx_values.opsets(path) == "ai.onnx 17, ai.onnx.ml 3"
    assert load(path).signature.metadata["opset"] == "ai.onnx 17, ai.onnx.ml 3"
    (tmp_path / "noise.onnx").write_bytes(b"\x07\xff\xff")
    assert onnx_values.opsets(tmp_path / "noise.onnx") == ""


def test_external_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    weights = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    graph = onnx.helper.make_graph(
        [node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", FLOAT, ["n", 3])],
        [value("y", FLOAT, ["n", 2])],
        [weights],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    assert (tmp_path / "m.onnx.data").exists()
    outputs = load(tmp_path / "m.onnx").predict({"x": np.ones((1, 3), np.float32)}, {})
    np.testing.assert_array_equal(outputs["y"], [[6.0, 9.0]])
