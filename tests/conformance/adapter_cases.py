"""One real artifact per adapter, with what the framework itself answers in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from penstock.core.messages import Parameter
from penstock.core.tensor import Array


@dataclass(frozen=True)
class Case:
    """`expected` is compared bit by bit. `framework` is the module whose absence must be told; "" needs none."""

    path: Path
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    framework: str = ""
    options: Mapping[str, Parameter] = field(default_factory=dict)


def _digits() -> tuple[Array, Array]:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn: pip install 'penstock[sklearn]'")
    images, digits = datasets.load_digits(return_X_y=True)
    return images[:400], digits[:400]


def onnx(folder: Path) -> Case:
    import onnxruntime

    path = Path(__file__).parents[2] / "examples" / "digits" / "model.onnx"
    images = np.random.default_rng(0).uniform(0, 16, (5, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    label, probabilities = session.run(None, {"image": images})
    return Case(path, {"image": images}, {"label": label, "probabilities": probabilities}, "onnxruntime")


def sklearn(folder: Path) -> Case:
    images, digits = _digits()
    linear = pytest.importorskip("sklearn.linear_model")
    skops = pytest.importorskip("skops.io", reason="needs skops: pip install 'penstock[sklearn]'")
    model = linear.LogisticRegression(max_iter=20, tol=0.1).fit(images, digits)
    skops.dump(model, folder / "linear.skops")
    rows = images[:5]
    return Case(
        folder / "linear.skops",
        {"input": rows},
        {"predict": model.predict(rows), "predict_proba": model.predict_proba(rows)},
        "sklearn",
    )


def xgboost(folder: Path) -> Case:
    framework = pytest.importorskip("xgboost", reason="needs xgboost: pip install 'penstock[xgboost]'")
    images, digits = _digits()
    rows = images[:5].astype(np.float32)
    model = framework.XGBClassifier(n_estimators=4, max_depth=3, n_jobs=1).fit(images, digits)
    model.save_model(folder / "digits.ubj")
    expected = {"predict": model.predict(rows).astype(np.int64), "predict_proba": model.predict_proba(rows)}
    return Case(folder / "digits.ubj", {"input": rows}, expected, "xgboost")


def lightgbm(folder: Path) -> Case:
    framework = pytest.importorskip("lightgbm", reason="needs lightgbm: pip install 'penstock[lightgbm]'")
    images, digits = _digits()
    model = framework.LGBMClassifier(n_estimators=4, num_leaves=5, n_jobs=1, verbose=-1).fit(images, digits)
    model.booster_.save_model(folder / "digits.txt")
    rows = images[:5]
    return Case(folder / "digits.txt", {"input": rows}, {"predict": model.booster_.predict(rows)}, "lightgbm")


def catboost(folder: Path) -> Case:
    framework = pytest.importorskip("catboost", reason="needs catboost: pip install 'penstock[catboost]'")
    images, digits = _digits()
    model = framework.CatBoostClassifier(
        iterations=4, depth=3, thread_count=1, verbose=False, allow_writing_files=False
    ).fit(images, digits)
    model.save_model(str(folder / "digits.cbm"))
    rows = images[:5].astype(np.float32)
    expected = {"predict": model.predict(rows).reshape(-1), "predict_proba": model.predict_proba(rows)}
    return Case(folder / "digits.cbm", {"input": rows}, expected, "catboost")


def python(folder: Path) -> Case:
    path = folder / "sums_for_conformance.py"
    path.write_text(
        "import penstock\n\n"
        "@penstock.model(inputs={'x': 'f4[n, 3]'}, outputs={'total': 'f4[n]'})\n"
        "def sums(x):\n"
        "    return x.sum(axis=1)\n"
    )
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    return Case(path, {"x": x}, {"total": x.sum(axis=1)})


def echo(folder: Path) -> Case:
    x = np.arange(10, dtype=np.int16).reshape(5, 2)
    return Case(Path("echo"), {"anything": x}, {"anything": x})


CASES: dict[str, Callable[[Path], Case]] = {
    "onnx": onnx,
    "sklearn": sklearn,
    "xgboost": xgboost,
    "lightgbm": lightgbm,
    "catboost": catboost,
    "python": python,
    "echo": echo,
}
