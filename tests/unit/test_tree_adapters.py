"""XGBoost, LightGBM and CatBoost: which file is whose, what the outputs mean, and files that would crash them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.core.errors import LoadError
from penstock.core.servable import LoadContext, Servable
from penstock.core.tensor import parse_spec
from penstock.runtime.adapters.catboost import plug as catboost_plug
from penstock.runtime.adapters.lightgbm import plug as lightgbm_plug
from penstock.runtime.adapters.xgboost import plug as xgboost_plug

xgboost = pytest.importorskip("xgboost", reason="needs xgboost: pip install 'penstock[xgboost]'")
lightgbm = pytest.importorskip("lightgbm", reason="needs lightgbm: pip install 'penstock[lightgbm]'")
catboost = pytest.importorskip("catboost", reason="needs catboost: pip install 'penstock[catboost]'")

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(80, 4)).astype(np.float32)
TWO = (X[:, 0] > 0).astype(int)
THREE = np.digitize(X[:, 1], [-0.5, 0.5])
VALUE = X[:, 0] * 2 + X[:, 2]


def load(plug: Any, path: Path, **context: Any) -> Servable:
    servable: Servable = plug.load(path, LoadContext("model", 1, **context))
    return servable


def answers(servable: Servable) -> dict[str, Any]:
    (spec,) = servable.signature.inputs
    return dict(servable.predict({spec.name: X.astype("f4" if spec.datatype == "FP32" else "f8")}, {}))


@pytest.mark.parametrize("suffix", [".json", ".ubj", ".model"])
@pytest.mark.parametrize("classes", [TWO, THREE], ids=["two", "three"])
def test_xgboost_classifier_answers_as_its_sklearn_wrapper(classes: Any, suffix: str, tmp_path: Path) -> None:
    model = xgboost.XGBClassifier(n_estimators=3, max_depth=2, n_jobs=1).fit(X, classes)
    path = tmp_path / f"m{suffix}"
    path.write_bytes(model.get_booster().save_raw("json" if suffix == ".json" else "ubj"))
    assert xgboost_plug.recognises(path)
    assert not catboost_plug.recognises(path)
    assert not lightgbm_plug.recognises(path)
    found = answers(load(xgboost_plug, path))
    np.testing.assert_array_equal(found["predict"], model.predict(X))
    np.testing.assert_array_equal(found["predict_proba"], model.predict_proba(X))


@pytest.mark.parametrize("objective", ["reg:squarederror", "multi:softmax", "binary:logitraw", "count:poisson"])
def test_xgboost_other_objectives_answer_what_the_booster_gives(objective: str, tmp_path: Path) -> None:
    target = {"multi:softmax": THREE, "binary:logitraw": TWO, "count:poisson": THREE}.get(objective, VALUE)
    parameters = {"objective": objective, "max_depth": 2, "nthread": 1}
    if objective == "multi:softmax":
        parameters["num_class"] = 3
    booster = xgboost.train(parameters, xgboost.DMatrix(X, target), 3)
    booster.save_model(tmp_path / "m.ubj")
    found = answers(load(xgboost_plug, tmp_path / "m.ubj"))
    assert list(found) == ["predict"]
    np.testing.assert_array_equal(found["predict"], booster.predict(xgboost.DMatrix(X)))


def test_xgboost_uses_the_trees_that_early_stopping_chose(tmp_path: Path) -> None:
    model = xgboost.XGBRegressor(n_estimators=60, learning_rate=0.9, early_stopping_rounds=2, n_jobs=1)
    model.fit(X[:40], VALUE[:40], eval_set=[(X[40:], VALUE[40:])], verbose=False)
    assert model.best_iteration < 57
    model.save_model(tmp_path / "m.json")
    np.testing.assert_array_equal(answers(load(xgboost_plug, tmp_path / "m.json"))["predict"], model.predict(X))


def test_xgboost_missing_values_are_nan(tmp_path: Path) -> None:
    holes = np.where(RANDOM.random(X.shape) < 0.3, np.float32(np.nan), X)
    model = xgboost.XGBRegressor(n_estimators=3, max_depth=3, n_jobs=1).fit(holes, VALUE)
    model.save_model(tmp_path / "m.ubj")
    found = load(xgboost_plug, tmp_path / "m.ubj").predict({"input": holes}, {})
    np.testing.assert_array_equal(found["predict"], model.predict(holes))


def test_xgboost_old_binary_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    old = tmp_path / "m.model"
    old.write_bytes(b"binf" + bytes(200))
    assert xgboost_plug.recognises(old)
    with pytest.raises(LoadError, match=r"save_model\('model\.ubj'\)"):
        load(xgboost_plug, old)


def test_xgboost_feature_names_are_told(tmp_path: Path) -> None:
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(X, VALUE, feature_names=["a", "b", "c", "d"]), 2)
    booster.save_model(tmp_path / "m.ubj")
    servable = load(xgboost_plug, tmp_path / "m.ubj")
    assert servable.signature.metadata["features"] == "a,b,c,d"
    np.testing.assert_array_equal(
        answers(servable)["predict"], booster.predict(xgboost.DMatrix(X, feature_names=["a", "b", "c", "d"]))
    )


@pytest.mark.parametrize(
    ("objective", "target", "shape"),
    [("regression", VALUE, (-1,)), ("binary", TWO, (-1,)), ("multiclass", THREE, (-1, 3))],
)
def test_lightgbm_answers_as_booster_predict(objective: str, target: Any, shape: Any, tmp_path: Path) -> None:
    parameters = {"objective": objective, "num_leaves": 4, "verbose": -1, "num_threads": 1}
    if objective == "multiclass":
        parameters["num_class"] = 3
    booster = lightgbm.train(parameters, lightgbm.Dataset(X, target), 3)
    booster.save_model(tmp_path / "m.txt")
    servable = load(lightgbm_plug, tmp_path / "m.txt")
    assert servable.signature.outputs[0].shape == shape
    np.testing.assert_array_equal(answers(servable)["predict"], booster.predict(X.astype("f8")))


def test_lightgbm_leaves_and_raw_scores_can_be_asked_for(tmp_path: Path) -> None:
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": 4, "verbose": -1, "num_threads": 1}, lightgbm.Dataset(X, TWO), 3
    )
    booster.save_model(tmp_path / "m.txt")
    raw = load(lightgbm_plug, tmp_path / "m.txt", options={"output": "raw"})
    np.testing.assert_array_equal(answers(raw)["predict"], booster.predict(X, raw_score=True))
    leaves = load(lightgbm_plug, tmp_path / "m.txt", options={"output": "leaf"})
    assert leaves.signature.outputs[0].datatype == "INT32"
    np.testing.assert_array_equal(answers(leaves)["predict"], booster.predict(X, pred_leaf=True))


def test_text_that_is_no_lightgbm_model_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy\n")
    assert not lightgbm_plug.recognises(tmp_path / "requirements.txt")


# XGBoost 3.2 and LightGBM 4.7 read past the end of files that are cut off, and the process is gone: so this runs in
# another one, which must come back with as many LoadErrors as there were cuts.
CUTS = """
import sys, pathlib, importlib
from penstock.core.errors import LoadError
from penstock.core.servable import LoadContext
plug = importlib.import_module("penstock.runtime.adapters." + sys.argv[1]).plug
path = pathlib.Path(sys.argv[2]); data = path.read_bytes(); refused = 0
cut = path.with_name("cut" + path.suffix)
for share in range(1, 40):
    cut.write_bytes(data[: len(data) * share // 48])
    try:
        plug.load(cut, LoadContext("m", 1))
    except LoadError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("framework", ["xgboost", "lightgbm"])
def test_file_cut_off_anywhere_does_not_end_the_process(framework: str, tmp_path: Path) -> None:
    if framework == "xgboost":
        path = tmp_path / "m.ubj"
        xgboost.XGBClassifier(n_estimators=20, n_jobs=1).fit(X, THREE).save_model(path)
    else:
        path = tmp_path / "m.txt"
        model = lightgbm.LGBMClassifier(n_estimators=40, verbose=-1, n_jobs=1).fit(X, THREE)
        model.booster_.save_model(path)
    done = subprocess.run(
        [sys.executable, "-c", CUTS, framework, str(path)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.strip().splitlines()[-1] == "39"


def train_catboost(kind: Any, *data: Any, **arguments: Any) -> Any:
    return kind(iterations=3, depth=2, thread_count=1, verbose=False, allow_writing_files=False, **arguments).fit(*data)


@pytest.mark.parametrize("suffix", [".cbm", ".json"])
def test_catboost_classifier_answers_as_in_process(suffix: str, tmp_path: Path) -> None:
    model = train_catboost(catboost.CatBoostClassifier, X, np.array(["no", "yes"])[TWO])
    path = tmp_path / f"m{suffix}"
    model.save_model(str(path), format=suffix[1:])
    model = catboost.CatBoostClassifier().load_model(str(path), format=suffix[1:])  # JSON rounds the last bit of leaves
    assert catboost_plug.recognises(path)
    assert not xgboost_plug.recognises(path)
    found = answers(load(catboost_plug, path))
    assert [item.decode() for item in found["predict"]] == model.predict(X).tolist()
    np.testing.assert_array_equal(found["predict_proba"], model.predict_proba(X))


def test_catboost_regressor_answers_values(tmp_path: Path) -> None:
    model = train_catboost(catboost.CatBoostRegressor, X, VALUE)
    model.save_model(str(tmp_path / "m.cbm"))
    found = answers(load(catboost_plug, tmp_path / "m.cbm"))
    assert list(found) == ["predict"]
    np.testing.assert_array_equal(found["predict"], model.predict(X))


def test_catboost_words_are_tensors_of_their_own(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"size": X[:, 0], "colour": np.array(["red", "blue"])[TWO], "weight": X[:, 1]})
    model = train_catboost(catboost.CatBoostClassifier, frame, THREE, cat_features=["colour"])
    model.save_model(str(tmp_path / "m.cbm"))
    servable = load(catboost_plug, tmp_path / "m.cbm")
    assert [(spec.name, spec.datatype, spec.shape) for spec in servable.signature.inputs] == [
        ("size", "FP32", (-1,)), ("colour", "BYTES", (-1,)), ("weight", "FP32", (-1,)),
    ]  # fmt: skip
    words = np.array([text.encode() for text in frame["colour"]], dtype=object)
    found = servable.predict({"size": X[:, 0], "colour": words, "weight": X[:, 1]}, {})
    np.testing.assert_array_equal(found["predict_proba"], model.predict_proba(frame))
    with pytest.raises(LoadError, match="the model has no feature height"):
        load(catboost_plug, tmp_path / "m.cbm", inputs=(parse_spec("height", "f4[n]"),))


def test_json_of_neither_framework_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "layers": 12}')
    assert not xgboost_plug.recognises(tmp_path / "config.json")
    assert not catboost_plug.recognises(tmp_path / "config.json")
