"""XGBoost boosters in its own JSON (`.json`) and UBJSON (`.ubj`) formats.

Classifiers answer as XGBClassifier does: `predict` is the class, `predict_proba` the probabilities. Everything else
answers `predict` with the booster's value. Inputs are float32, which is what XGBoost computes with; NaN is missing.

Inline: the call crosses ctypes, which lets the GIL go, and one row takes about 95 µs, of which most is checking of
arguments in Python. Loading is guarded, because XGBoost reads past the end of a cut-off UBJSON file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penstock.core.errors import LoadError
from penstock.core.messages import Parameter
from penstock.core.servable import LoadContext, Servable, Signature, Tensors
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec
from penstock.runtime.frameworks import check_options, choose, one_table, require, table_spec

OPTIONS: tuple[str, ...] = ()
_OLD = (".model", ".bin", ".deprecated")
_HEAD_BYTES = 4096


class XgboostModel:
    """The servable of a booster."""

    def __init__(self, booster: Any, trees: tuple[int, int], kind: str, signature: Signature) -> None:
        self.signature = signature
        self._booster = booster
        self._trees = trees
        self._kind = kind
        self._input = signature.inputs[0]
        self._names = tuple(spec.name for spec in signature.outputs)

    def predict(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Tensors:
        table = one_table(inputs, self._input)
        found = self._booster.inplace_predict(table, iteration_range=self._trees, validate_features=False)
        outputs = _answer(found, self._kind)
        return {name: outputs[name] for name in self._names}

    def close(self) -> None:
        """Nothing to free."""


class XgboostAdapter:
    """XGBoost."""

    name = "xgboost"
    inline_safe = True
    preload = ("xgboost",)

    def recognises(self, path: Path) -> bool:
        suffix = path.suffix.lower()
        if suffix not in (".json", ".ubj", *_OLD) or not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        return (
            (b"learner" in head and head.lstrip()[:1] == b"{")
            or (suffix == ".ubj" and head[:1] == b"{")
            or head.startswith((b"binf", b"bs64"))  # the old binary format: taken, so that the refusal can say why
        )

    def load(self, path: Path, context: LoadContext) -> Servable:
        check_options(context.options, OPTIONS, self.name)
        _guard(path)
        xgboost = require("xgboost", "xgboost", "xgboost")
        booster = _open(xgboost, path)
        booster.set_param({"nthread": context.threads, "device": context.device})
        learner = json.loads(booster.save_config())["learner"]
        kind = _kind(str(learner["objective"]["name"]), int(learner["learner_model_param"]["num_class"]))
        best = booster.attributes().get("best_iteration")
        trees = (0, int(best) + 1) if best is not None else (0, 0)
        given = table_spec(context, int(booster.num_features()), "FP32")
        zeros = np.zeros((2, max(given.shape[1], 1)), NUMPY_OF[given.datatype])
        shown = _answer(booster.inplace_predict(zeros, iteration_range=trees, validate_features=False), kind)
        outputs = choose([_spec(name, array) for name, array in shown.items()], context, "output")
        metadata = {"xgboost": str(xgboost.__version__), "objective": str(learner["objective"]["name"])}
        if booster.feature_names:
            metadata["features"] = ",".join(booster.feature_names)
        signature = Signature(
            inputs=(given,), outputs=outputs, platform="xgboost", batchable=True, inline_safe=True, metadata=metadata
        )
        return XgboostModel(booster, trees, kind, signature)


def _guard(path: Path) -> None:
    """Nothing, when the file is whole: both formats end with the version, which is the last key of the object.

    Raises:
        LoadError: an old format, or a file that was cut off.
    """
    with path.open("rb") as file:
        first = file.read(4)
        file.seek(max(0, path.stat().st_size - 256))
        tail = file.read()
    if not first.lstrip().startswith(b"{"):
        raise LoadError(
            f"{path.name} is not in XGBoost's JSON or UBJSON format. Files of the old binary format are opened with "
            "the XGBoost (below 3.1) that made them and saved again: booster.save_model('model.ubj')"
        )
    if b"version" not in tail or not tail.rstrip().endswith(b"}"):
        raise LoadError(f"{path.name} is cut off: it does not end as a saved booster does. Copy it again")


def _open(xgboost: Any, path: Path) -> Any:
    booster = xgboost.Booster()
    try:
        # By content and not by suffix, because `.model` files may hold either format.
        booster.load_model(bytearray(path.read_bytes()))
    except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LoadError(f"XGBoost cannot load {path.name}: {reason}") from error
    return booster


def _kind(objective: str, classes: int) -> str:
    """What the booster's value means: the rules of xgboost.XGBClassifier, as data."""
    if objective in ("binary:logistic", "binary:hinge"):
        return "binary" if objective == "binary:logistic" else "class"
    if objective == "multi:softprob" and classes > 1:
        return "probabilities"
    return "class" if objective == "multi:softmax" else "value"


def _answer(found: Array, kind: str) -> dict[str, Array]:
    """The outputs by name; (n) or (n, k) values in.

    Source: xgboost/sklearn.py, XGBClassifier.predict and predict_proba.
    """
    if kind == "binary":
        column = found.reshape(len(found), -1)
        if column.shape[1] > 1:  # several labels, each on its own
            return {"predict": (found > 0.5).astype(np.int64), "predict_proba": found}  # type: ignore[operator]
        both = np.stack([1.0 - column[:, 0], column[:, 0]], axis=1).astype(np.float32)  # type: ignore[operator]
        return {"predict": (column[:, 0] > 0.5).astype(np.int64), "predict_proba": both}  # type: ignore[operator]
    if kind == "probabilities":
        return {"predict": np.argmax(found, axis=1).astype(np.int64), "predict_proba": found}
    if kind == "class":
        return {"predict": found.astype(np.int64)}
    return {"predict": found}


def _spec(name: str, array: Array) -> TensorSpec:
    datatype = "FP32" if array.dtype.kind == "f" else "INT64"
    shape = (-1, *array.shape[1:])
    labels = tuple(str(index) for index in range(shape[1])) if name == "predict_proba" else ()
    return TensorSpec(name, datatype, shape, labels=labels)


plug = XgboostAdapter()
