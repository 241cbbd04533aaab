"""The model that is shipped is the one its script trains."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penstock.core.servable import LoadContext
from penstock.runtime.adapters.onnx import plug
from penstock.runtime.recognise import recognise

FOLDER = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def train() -> ModuleType:
    pytest.importorskip("sklearn", reason="needs scikit-learn to train: pip install 'penstock[sklearn]'")
    spec = importlib.util.spec_from_file_location("train_digits", FOLDER / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_folder_is_served_as_the_model_digits() -> None:
    (options,) = recognise(str(FOLDER))
    assert options.name == "digits"


def test_shipped_model_reads_unseen_digits(train: ModuleType) -> None:
    _, images, _, digits = train.data()
    outputs = plug.load(FOLDER / "model.onnx", LoadContext("digits", 1)).predict({"image": images}, {})
    assert (outputs["label"] == digits).mean() > 0.95
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1.0, rtol=1e-5)


def test_shipped_model_is_what_the_script_makes(train: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx", reason="needs skl2onnx to write ONNX: pip install skl2onnx")
    images, unseen, digits, _ = train.data()
    train.write_onnx(train.train_network(images, digits), tmp_path / "model.onnx")
    shipped, made = (plug.load(folder / "model.onnx", LoadContext("digits", 1)) for folder in (FOLDER, tmp_path))
    assert made.signature.inputs == shipped.signature.inputs
    assert made.signature.outputs == shipped.signature.outputs
    ours, theirs = (servable.predict({"image": unseen}, {}) for servable in (shipped, made))
    # Training sums in another order on another processor, so rare images on the edge may fall to the other side.
    assert (ours["label"] == theirs["label"]).mean() > 0.99
    assert np.abs(ours["probabilities"] - theirs["probabilities"]).mean() < 0.01
