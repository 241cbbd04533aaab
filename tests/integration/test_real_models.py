"""Trained models that packages bring: what their files say and what they answer.

The packages are installed without their dependencies, only for the files in them:
pip install --no-deps magika silero-vad rapidocr-onnxruntime
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from penstock.core.servable import LoadContext, Servable
from penstock.runtime.adapters.onnx import plug


def folder(package: str, distribution: str) -> Path:
    """The package's folder, without importing it: its dependencies are not there."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"needs the model in {distribution}: pip install --no-deps {distribution}")
    return Path(next(iter(found.submodule_search_locations)))


def load(path: Path) -> Servable:
    return plug.load(path, LoadContext("model", 1))


def in_process(path: Path, feed: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def magika_features(content: bytes) -> Any:
    """(2048) int32: the first and the last 1024 bytes, padded with 256. Source: magika/magika.py."""
    start, end = content.lstrip()[:1024], content.rstrip()[-1024:]
    padded = [*start, *[256] * (1024 - len(start)), *[256] * (1024 - len(end)), *end]
    return np.array(padded, np.int32)


def test_magika_tells_file_types() -> None:
    root = folder("magika", "magika") / "models" / "standard_v3_3"
    labels = json.loads((root / "config.min.json").read_text())["target_labels_space"]
    servable = load(root / "model.onnx")
    assert servable.signature.batchable
    files = {
        "python": Path(__file__).read_bytes(),
        "json": json.dumps({"name": ["a", 1], "other": {"b": None}}, indent=1).encode() * 1,
        "markdown": (Path(__file__).parents[2] / "README.md").read_bytes(),
    }
    rows = np.stack([magika_features(content) for content in files.values()])
    scores = servable.predict({"bytes": rows}, {})["target_label"]
    assert [labels[index] for index in scores.argmax(axis=1)] == list(files)


def test_magika_rows_do_not_depend_on_their_batch() -> None:
    servable = load(folder("magika", "magika") / "models" / "standard_v3_3" / "model.onnx")
    rows = np.random.default_rng(0).integers(0, 257, (8, 2048), dtype=np.int32)
    whole = servable.predict({"bytes": rows}, {})["target_label"]
    for row in range(8):
        alone = servable.predict({"bytes": rows[row : row + 1]}, {})["target_label"]
        np.testing.assert_allclose(alone[0], whole[row], rtol=1e-3, atol=1e-6)


def test_silero_carries_its_state_and_is_not_batched() -> None:
    path = folder("silero_vad", "silero-vad") / "data" / "silero_vad.onnx"
    servable = load(path)
    assert not servable.signature.batchable  # the state's axis 0 is not the batch
    assert [(spec.name, spec.shape) for spec in servable.signature.inputs] == [
        ("input", (-1, -1)),
        ("state", (2, -1, 128)),
        ("sr", ()),
    ]
    sound = np.random.default_rng(0).normal(0, 0.01, (3, 1, 576)).astype(np.float32)
    state = np.zeros((2, 1, 128), np.float32)
    expected_state = state
    for chunk in sound:
        feed = {"input": chunk, "state": state, "sr": np.array(16000)}
        found = servable.predict(feed, {})
        expected = in_process(path, {**feed, "state": expected_state})
        np.testing.assert_array_equal(found["output"], expected["output"])
        np.testing.assert_array_equal(found["stateN"], expected["stateN"])
        assert found["output"].item() < 0.5  # quiet noise is no speech
        state, expected_state = found["stateN"], expected["stateN"]
    assert np.abs(state).max() > 0


def test_paddle_text_direction_takes_images_of_any_number() -> None:
    root = folder("rapidocr_onnxruntime", "rapidocr-onnxruntime") / "models"
    path = root / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    servable = load(path)
    assert servable.signature.batchable
    images = np.random.default_rng(0).normal(size=(4, 3, 48, 192)).astype(np.float32)
    (output,) = servable.predict({"x": images}, {}).values()
    (expected,) = in_process(path, {"x": images}).values()
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_allclose(output.sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", ["ch_PP-OCRv4_det_infer.onnx", "ch_PP-OCRv4_rec_infer.onnx"])
def test_paddle_lengths_without_a_name_do_not_forbid_batches(name: str) -> None:
    root = folder("rapidocr_onnxruntime", "rapidocr-onnxruntime") / "models"
    assert load(root / name).signature.batchable
