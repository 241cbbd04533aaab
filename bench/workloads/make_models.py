"""Writes the two models that every server is asked to serve, and a few inputs for each.

    python make_models.py FOLDER

FOLDER gets `digits.onnx` and `conv.onnx` with their inputs `digits.npy` (64, 64) and `conv.npy` (4, 3, 224, 224), all
float32. Everything comes from fixed seeds, so two machines measure the same work. Needs onnx and scikit-learn, which
the harness keeps in an environment of their own (`bench/.venvs/models`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

OPSET = 17  # old enough for every peer's ONNX Runtime

# (channels, stride) of each 3×3 convolution: 2.9 billion multiply-adds an image, 20 to 28 ms on one thread of the
# project's test machine.
CONV_LAYERS = ((32, 2), (64, 1), (64, 2), *[(64, 1)] * 4, (128, 2), *[(128, 1)] * 6, (256, 2), *[(256, 1)] * 9)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: tuple[int, ...],
    names: tuple[str, str],
) -> None:
    """Writes one graph with a free batch axis; `shape` is one row's."""
    source, target = names
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info(target, TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def make_digits(folder: Path) -> None:
    """64 → 64 → 32 → 10, trained on scikit-learn's digits."""
    images, labels = load_digits(return_X_y=True)
    rows = (images / 16.0).astype(np.float32)
    network = MLPClassifier((64, 32), max_iter=200, random_state=0).fit(rows, labels)
    nodes, weights, value = [], {}, "x"
    last = len(network.coefs_) - 1
    for index, (matrix, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        weights |= {f"w{index}": matrix, f"b{index}": bias}
        nodes.append(helper.make_node("Gemm", [value, f"w{index}", f"b{index}"], [f"h{index}"]))
        value = f"h{index}"
        if index < last:
            nodes.append(helper.make_node("Relu", [value], [f"r{index}"]))
            value = f"r{index}"
    nodes.append(helper.make_node("Softmax", [value], ["y"], axis=-1))
    save(folder / "digits.onnx", nodes, weights, (64,), ("x", "y"))
    np.save(folder / "digits.npy", rows[:64])


def make_conv(folder: Path) -> None:
    """A stack of 3×3 convolutions over a 3×224×224 image, with random weights: only its cost matters."""
    random = np.random.default_rng(0)
    nodes, weights, value, channels = [], {}, "x", 3
    for index, (wider, stride) in enumerate(CONV_LAYERS):
        scale = (2.0 / (channels * 9)) ** 0.5  # He initialisation keeps the signal's size
        weights |= {
            f"w{index}": random.normal(0.0, scale, (wider, channels, 3, 3)),
            f"b{index}": np.zeros(wider),
        }
        names = [value, f"w{index}", f"b{index}"]
        sizes = {"kernel_shape": [3, 3], "strides": [stride] * 2, "pads": [1] * 4}
        nodes.append(helper.make_node("Conv", names, [f"c{index}"], **sizes))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        value, channels = f"r{index}", wider
    weights |= {"w": random.normal(0.0, channels**-0.5, (channels, 10)), "b": np.zeros(10)}
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
    nodes.append(helper.make_node("Gemm", ["f", "w", "b"], ["y"]))
    save(folder / "conv.onnx", nodes, weights, (3, 224, 224), ("x", "y"))
    np.save(folder / "conv.npy", random.random((4, 3, 224, 224), dtype=np.float32))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    make_digits(target)
    make_conv(target)
