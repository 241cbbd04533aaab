"""scikit-learn: trust, what the outputs are, and models trained with DataFrames."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.core.errors import LoadError
from penstock.core.servable import LoadContext, Servable
from penstock.core.tensor import parse_spec
from penstock.runtime.adapters.sklearn import plug

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'penstock[sklearn]'")
skops = pytest.importorskip("skops.io", reason="needs skops: pip install 'penstock[sklearn]'")

from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.ensemble import RandomForestClassifier  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import OneHotEncoder, StandardScaler  # noqa: E402

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 3))
Y = (X[:, 0] > 0).astype(int)


def load(path: Path, **context: Any) -> Servable:
    return plug.load(path, LoadContext("model", 1, **context))


def dump(model: Any, path: Path) -> Path:
    skops.dump(model, path)
    return path


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".joblib"])
def test_trusted_pickle_answers_as_in_process(suffix: str, tmp_path: Path) -> None:
    import joblib

    model = RandomForestClassifier(5, random_state=0, n_jobs=-1).fit(X, Y)
    joblib.dump(model, tmp_path / f"m{suffix}")
    outputs = load(tmp_path / f"m{suffix}", trusted=True).predict({"input": X}, {})
    np.testing.assert_array_equal(outputs["predict"], model.predict(X))
    np.testing.assert_array_equal(outputs["predict_proba"], model.predict_proba(X))


def test_trust_is_asked_for_before_the_framework(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as where it is not installed
    (tmp_path / "m.pkl").write_bytes(b"never opened")
    with pytest.raises(LoadError, match=r"is a pickle.*--trust PATH"):
        load(tmp_path / "m.pkl")
    with pytest.raises(LoadError, match=r"pip install 'penstock\[sklearn\]'"):
        load(tmp_path / "m.pkl", trusted=True)


def test_skops_types_that_are_not_trusted_need_trust(tmp_path: Path) -> None:
    path = dump(RandomForestClassifier(2, random_state=0).fit(X, Y), tmp_path / "m.skops")
    with pytest.raises(LoadError, match=r"sklearn\.tree\._tree\.Tree.*--trust"):
        load(path)
    assert load(path, trusted=True).predict({"input": X}, {})["predict"].shape == (40,)


def test_object_that_is_no_estimator_is_refused(tmp_path: Path) -> None:
    import joblib

    joblib.dump({"weights": [1, 2]}, tmp_path / "m.joblib")
    with pytest.raises(LoadError, match="holds a dict, which has none of predict"):
        load(tmp_path / "m.joblib", trusted=True)


def test_text_classes_become_bytes_and_labels(tmp_path: Path) -> None:
    model = LogisticRegression().fit(X, np.array(["no", "yes"])[Y])
    servable = load(dump(model, tmp_path / "m.skops"))
    predict, probabilities = servable.signature.outputs
    assert (predict.datatype, probabilities.labels) == ("BYTES", ("no", "yes"))
    outputs = servable.predict({"input": X[:4]}, {})
    assert [item.decode() for item in outputs["predict"]] == model.predict(X[:4]).tolist()


def test_regressor_gives_values_and_outputs_can_be_chosen(tmp_path: Path) -> None:
    path = dump(LinearRegression().fit(X, X @ np.array([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]])), tmp_path / "m.skops")
    servable = load(path)
    assert [(spec.name, spec.datatype, spec.shape) for spec in servable.signature.outputs] == [
        ("predict", "FP64", (-1, 2))
    ]
    with pytest.raises(LoadError, match="outputs can be predict"):
        load(path, options={"outputs": "predict_proba"})


def test_chosen_methods_are_the_outputs_in_order(tmp_path: Path) -> None:
    model = LogisticRegression().fit(X, Y)
    servable = load(dump(model, tmp_path / "m.skops"), options={"outputs": "decision_function, predict"})
    outputs = servable.predict({"input": X}, {})
    assert list(outputs) == ["decision_function", "predict"]
    np.testing.assert_array_equal(outputs["decision_function"], model.decision_function(X))


def test_transformers_answer_transform(tmp_path: Path) -> None:
    model = StandardScaler().fit(X)
    outputs = load(dump(model, tmp_path / "m.skops")).predict({"input": X}, {})
    np.testing.assert_array_equal(outputs["transform"], model.transform(X))


def test_several_targets_give_predict_only(tmp_path: Path) -> None:
    import joblib

    model = RandomForestClassifier(2, random_state=0).fit(X, np.stack([Y, 1 - Y], axis=1))
    joblib.dump(model, tmp_path / "m.joblib")
    servable = load(tmp_path / "m.joblib", trusted=True)
    assert [(spec.name, spec.shape) for spec in servable.signature.outputs] == [("predict", (-1, 2))]
    np.testing.assert_array_equal(servable.predict({"input": X}, {})["predict"], model.predict(X))


def test_feature_type_is_float64_unless_asked(tmp_path: Path) -> None:
    path = dump(LogisticRegression().fit(X, Y), tmp_path / "m.skops")
    assert load(path).signature.inputs[0].datatype == "FP64"
    assert load(path, options={"dtype": "FP32"}).signature.inputs[0].datatype == "FP32"
    named = load(path, inputs=(parse_spec("features", "f4[n, 3]"),))
    assert named.signature.inputs[0].name == "features"
    with pytest.raises(LoadError, match=r"the model takes numbers of shape \[-1, 3\]"):
        load(path, inputs=(parse_spec("features", "f4[n, 5]"),))


def test_model_trained_with_a_frame_takes_one_table_without_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b", "c"])
    model = LogisticRegression().fit(frame, Y)
    servable = load(dump(model, tmp_path / "m.skops"))
    outputs = servable.predict({"input": X}, {})
    np.testing.assert_array_equal(outputs["predict_proba"], model.predict_proba(frame))
    assert servable.signature.metadata["features"] == "a,b,c"
    assert not [warning for warning in recwarn if "feature names" in str(warning.message)]


def test_columns_of_several_types_are_tensors_of_their_own(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    import joblib

    frame = pandas.DataFrame({"size": X[:, 0], "colour": np.array(["red", "blue"])[Y]})
    encode = ColumnTransformer([("c", OneHotEncoder(), ["colour"])], remainder="passthrough")
    model = make_pipeline(encode, LogisticRegression()).fit(frame, Y)
    joblib.dump(model, tmp_path / "m.joblib")
    inputs = (parse_spec("size", "f8[n]"), parse_spec("colour", "str[n]"))
    servable = load(tmp_path / "m.joblib", trusted=True, inputs=inputs)
    assert servable.signature.batchable
    given = {"size": X[:, 0], "colour": np.array([text.encode() for text in frame["colour"]], dtype=object)}
    np.testing.assert_array_equal(servable.predict(given, {})["predict_proba"], model.predict_proba(frame))
    with pytest.raises(LoadError, match="not declared: colour"):
        load(tmp_path / "m.joblib", trusted=True, inputs=(inputs[0], parse_spec("weight", "f8[n]")))


def test_saved_n_jobs_does_not_take_other_workers_cores(tmp_path: Path) -> None:
    import joblib

    joblib.dump(RandomForestClassifier(2, n_jobs=-1).fit(X, Y), tmp_path / "m.joblib")
    servable = load(tmp_path / "m.joblib", trusted=True, threads=1)
    method = servable._methods["predict"]  # type: ignore[attr-defined]  # no public sight of the estimator
    assert method.__self__.n_jobs == 1
