"""The graph that the documentation shows: real pictures of digits through examples/graph, as its page serves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running_server import start

import penstock

ROOT = Path(__file__).parents[2]


def test_the_careful_reader_reads_digits_and_looks_again_when_unsure(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn: pip install 'penstock[sklearn]'")
    images, digits = datasets.load_digits(return_X_y=True)
    pictures = np.round(images[:120] * (255 / 16)).astype(np.uint8)
    folder = ROOT / "examples" / "graph"
    (tmp_path / "server").mkdir()
    steps = ("scale", "shift_left", "shift_right", "pick")
    models = {name: f"{folder / 'steps.py'}:{name}" for name in steps}
    models |= {"digits": str(ROOT / "examples/digits/model.onnx"), "careful": str(folder / "careful.yaml")}
    running = start(tmp_path / "server", models)
    try:
        with penstock.Client(running.http) as client:
            found = [client.infer("careful", {"picture": picture[None]}) for picture in pictures]
            looks = client.statistics("shift_left")[0].inference_count
        sure = np.array([float(one["probabilities"].max()) for one in found])
        labels = np.array([int(one["label"][0]) for one in found])
        assert (labels == digits[:120]).mean() > 0.9
        assert all(int(one["probabilities"].argmax()) == label for one, label in zip(found, labels, strict=True))
        assert 0 < looks < 60 and (sure < 0.9).sum() <= looks
    finally:
        running.stop()
