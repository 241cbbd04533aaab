"""Every unseen digit, through one real server and every protocol: what the same file answers in this process, exactly."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

import penstock
from penstock.core.tensor import NUMPY_OF

pytest.importorskip("sklearn", reason="needs scikit-learn to train: pip install 'penstock[sklearn]'")

SCRIPT = Path(__file__).parents[2] / "examples" / "digits" / "train.py"
Outputs = dict[str, np.ndarray]


def onnx(path: Path, images: np.ndarray) -> Outputs:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def skops(path: Path, images: np.ndarray) -> Outputs:
    io = pytest.importorskip("skops.io", reason="needs skops: pip install 'penstock[sklearn]'")
    model = io.load(path / "model.skops")
    return {"predict": model.predict(images), "predict_proba": model.predict_proba(images)}


def xgboost(path: Path, images: np.ndarray) -> Outputs:
    framework = pytest.importorskip("xgboost", reason="needs xgboost: pip install 'penstock[xgboost]'")
    model = framework.XGBClassifier()
    model.load_model(path / "model.ubj")
    return {"predict": model.predict(images).astype(np.int64), "predict_proba": model.predict_proba(images)}


def lightgbm(path: Path, images: np.ndarray) -> Outputs:
    framework = pytest.importorskip("lightgbm", reason="needs lightgbm: pip install 'penstock[lightgbm]'")
    return {"predict": framework.Booster(model_file=str(path / "model.txt")).predict(images)}


def catboost(path: Path, images: np.ndarray) -> Outputs:
    framework = pytest.importorskip("catboost", reason="needs catboost: pip install 'penstock[catboost]'")
    model = framework.CatBoostClassifier().load_model(str(path / "model.cbm"))
    return {"predict": model.predict(images).reshape(-1), "predict_proba": model.predict_proba(images)}


@dataclass(frozen=True)
class Kind:
    """One framework: how its file answers in process, its input as served, and which output tells the digit."""

    in_process: Callable[[Path, np.ndarray], Outputs]
    dtype: str
    input: str = "input"
    answer: str = "predict"
    by_row: bool = True  # a row's answer has the same bits in every batch


KINDS = {
    # Products of matrices: the library adds in another order for another number of rows, which can move the last bit.
    "digits": Kind(onnx, "f4", "image", "label", by_row=False),
    "digits-skops": Kind(skops, "f8", by_row=False),
    "digits-xgboost": Kind(xgboost, "f4"),
    "digits-lightgbm": Kind(lightgbm, "f8"),
    "digits-catboost": Kind(catboost, "f4"),
}


@dataclass(frozen=True)
class Digits:
    """The unseen images with their digits, the models' folder, and the server of all of them."""

    images: np.ndarray
    digits: np.ndarray
    folder: Path
    server: Any

    def expected(self, model: str) -> Outputs:
        kind = KINDS[model]
        return kind.in_process(self.folder / model / "1", self.images.astype(kind.dtype))

    def accuracy(self, model: str, outputs: Outputs) -> float:
        answer = outputs[KINDS[model].answer]
        return float((self.labels(answer) == self.digits).mean())

    def labels(self, answer: np.ndarray) -> np.ndarray:
        """LightGBM answers the probabilities only."""
        return answer.argmax(axis=1) if answer.ndim == 2 else answer


@pytest.fixture(scope="module")
def served(shared_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Digits]:
    for name in ("skl2onnx", "skops", "xgboost", "lightgbm", "catboost"):
        pytest.importorskip(name, reason=f"the example's script needs {name}: make test installs it")
    folder = tmp_path_factory.mktemp("trained")
    subprocess.run([sys.executable, str(SCRIPT), "--all", "--out", str(folder)], check=True, stdout=subprocess.DEVNULL)
    spec = importlib.util.spec_from_file_location("train_all_digits", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    _, images, _, digits = script.data()
    assert {path.name for path in folder.iterdir()} == set(KINDS), "a model of the script is not tested here"
    # One batch holds all images, as in this process. Warm-up is left out: what it measures on a busy machine can decide
    # that joining rows does not pay, and then there are no batches to compare.
    models: dict[str, dict[str, object]] = {
        name: {"path": str(folder / name), "max_batch_size": 512, "warm_up": False} for name in KINDS
    }
    models["digits"]["executor"] = "inline"
    yield Digits(images, digits, folder, shared_server(models))


def post(served: Digits, path: str, body: object) -> Any:
    connection = http.client.HTTPConnection(served.server.http.removeprefix("http://"), timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200, data
        return json.loads(data)
    finally:
        connection.close()


def by_client(served: Digits, model: str, rows: np.ndarray) -> Outputs:
    with penstock.Client(served.server.http) as client:
        return dict(client.infer(model, {KINDS[model].input: rows}))


def by_v2_json(served: Digits, model: str, rows: np.ndarray) -> Outputs:
    datatype = np_to_triton_dtype(rows.dtype)
    tensor = {"name": KINDS[model].input, "datatype": datatype, "shape": rows.shape, "data": rows.ravel().tolist()}
    answer = post(served, f"/v2/models/{model}/infer", {"inputs": [tensor]})
    return {
        output["name"]: np.array(output["data"], NUMPY_OF[output["datatype"]]).reshape(output["shape"])
        for output in answer["outputs"]
    }


def by_v1(served: Digits, model: str, rows: np.ndarray) -> Outputs:
    predictions = post(served, f"/v1/models/{model}:predict", {"instances": rows.tolist()})["predictions"]
    if isinstance(predictions[0], dict):
        return {name: np.array([row[name] for row in predictions]) for name in predictions[0]}
    return {KINDS[model].answer: np.array(predictions)}


def by_predict(served: Digits, model: str, rows: np.ndarray) -> Outputs:
    predictions = post(served, f"/predict/{model}", rows.tolist())["predictions"]
    if isinstance(predictions, dict):
        return {name: np.array(values) for name, values in predictions.items()}
    return {KINDS[model].answer: np.array(predictions)}


def by_grpc(served: Digits, model: str, rows: np.ndarray) -> Outputs:
    tensor = triton.InferInput(KINDS[model].input, rows.shape, np_to_triton_dtype(rows.dtype))
    tensor.set_data_from_numpy(rows)
    with triton.InferenceServerClient(served.server.grpc) as client:
        result = client.infer(model, [tensor])
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


ROUTES = {"client": by_client, "v2-json": by_v2_json, "v1": by_v1, "predict": by_predict, "grpc": by_grpc}
UNTYPED = ("v1", "predict")  # their answers are plain JSON: numbers without a datatype


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("model", KINDS)
def test_all_images_at_once_are_answered_bit_for_bit_as_in_process(served: Digits, model: str, route: str) -> None:
    expected = served.expected(model)
    found = ROUTES[route](served, model, served.images.astype(KINDS[model].dtype))
    assert set(found) == set(expected)
    for name, array in expected.items():
        if route in UNTYPED:
            found[name] = found[name].astype(array.dtype)  # JSON's shortest decimals name each float exactly
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert served.accuracy(model, found) == served.accuracy(model, expected) > 0.9


@pytest.mark.parametrize("model", KINDS)
async def test_each_image_alone_among_others_gets_the_answer_it_gets_in_process(served: Digits, model: str) -> None:
    kind = KINDS[model]
    expected = served.expected(model)
    rows = served.images.astype(kind.dtype)
    found: list[Outputs] = [{} for _ in rows]
    waiting = iter(range(len(rows)))

    async with penstock.AsyncClient(served.server.http, retries=0) as client:

        async def ask() -> None:
            for row in waiting:
                found[row] = dict(await client.infer(model, {kind.input: rows[row : row + 1]}))

        await asyncio.gather(*(ask() for _ in range(32)))
        (statistics,) = await client.statistics(model)
    assert max(statistics.batches) > 1, "nothing was batched"

    joined = {name: np.concatenate([outputs[name] for outputs in found]) for name in expected}
    for name, array in expected.items():
        if kind.by_row or array.dtype == np.int64:
            np.testing.assert_array_equal(joined[name], array)
        else:
            np.testing.assert_allclose(joined[name], array, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(served.labels(joined[kind.answer]), served.labels(expected[kind.answer]))
    assert served.accuracy(model, joined) == served.accuracy(model, expected)
