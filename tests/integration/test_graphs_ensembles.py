"""Triton's ensembles, read and served as graphs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from running_server import start

import penstock
from penstock.core.errors import (
    LoadError,
    NotFound,
    NotReady,
)

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "model.onnx"


ENSEMBLE = """
name: "pipeline"
platform: "ensemble"
max_batch_size: 64
input [ { name: "PIXELS" data_type: TYPE_FP32 dims: [ 64 ] } ]
output [
  { name: "LABEL" data_type: TYPE_INT64 dims: [ ] },
  { name: "SURE" data_type: TYPE_FP32 dims: [ 10 ] }
]
ensemble_scheduling {
  step [
    {
      model_name: "digits" model_version: -1
      input_map { key: "image" value: "scaled" }
      output_map { key: "label" value: "LABEL" } output_map { key: "probabilities" value: "SURE" }
    },
    {
      model_name: "scale" model_version: -1
      input_map { key: "pixels" value: "PIXELS" }
      output_map { key: "image" value: "scaled" }
    }
  ]
}
"""


def repository(folder: Path) -> Path:
    """A Triton repository: a model that scales pixels to 0 … 16, the digits, and their ensemble."""
    import onnx
    from onnx import TensorProto, helper

    for name in ("scale", "digits", "pipeline"):
        (folder / name / "1").mkdir(parents=True)
    pixels, image = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 64]) for name in ("pixels", "image"))
    factor = helper.make_tensor("factor", TensorProto.FLOAT, [1], [16.0])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["pixels", "factor"], ["image"])], "scale", [pixels], [image], [factor]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "scale" / "1" / "model.onnx")
    (folder / "digits" / "1" / "model.onnx").write_bytes(DIGITS.read_bytes())
    (folder / "pipeline" / "config.pbtxt").write_text(ENSEMBLE)
    return folder


def test_a_triton_ensemble_answers_as_its_models_one_after_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    running = start(folder, {}, [str(repository(tmp_path / "repository"))])
    try:
        pixels = np.random.default_rng(0).random((70, 64), np.float32)
        with triton.InferenceServerClient(running.http.removeprefix("http://")) as client:
            sent = triton.InferInput("PIXELS", pixels.shape, "FP32")
            sent.set_data_from_numpy(pixels)
            whole = client.infer("pipeline", [sent])
            assert client.get_model_metadata("pipeline")["platform"] == "ensemble"
            assert client.get_model_config("pipeline")["max_batch_size"] > 0
        with penstock.Client(running.http) as own:
            alone = own.infer("digits", {"image": pixels * 16})
        np.testing.assert_array_equal(whole.as_numpy("LABEL"), alone["label"])
        np.testing.assert_allclose(whole.as_numpy("SURE"), alone["probabilities"], rtol=1e-6)
    finally:
        running.stop()


def test_loading_an_ensemble_loads_its_models(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    running = start(folder, {}, [str(repository(tmp_path / "repository"))], model_control="explicit")
    try:
        with penstock.Client(running.http, retries=0) as client:
            assert client.models() == []
            client.load("pipeline")
            assert client.models() == ["digits", "pipeline", "scale"]
            assert client.infer("pipeline", {"PIXELS": np.zeros((1, 64), np.float32)})["LABEL"].shape == (1,)
            client.unload("pipeline")
            deadline = time.monotonic() + 20
            while client.models() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert client.models() == []
            with pytest.raises((NotFound, NotReady, LoadError)):
                client.infer("pipeline", {"PIXELS": np.zeros((1, 64), np.float32)})
    finally:
        running.stop()
