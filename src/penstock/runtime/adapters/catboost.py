"""CatBoost models in its own formats: `.cbm` and `.json`.

Classifiers answer as CatBoostClassifier does: `predict` is the class (text when classes have names) and `predict_proba`
the probabilities. Everything else answers `predict` with the raw value. A model of numbers only takes one table; one
with categorical or text features takes one tensor per feature, named as in training.

Not inline: the GIL is held while the rows are made into a pool, 200 µs for 32 small rows and more for wider ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penstock.core.declare import rows_along_axis_0
from penstock.core.errors import LoadError
from penstock.core.messages import Parameter
from penstock.core.servable import LoadContext, Servable, Signature, Tensors
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec, datatype_of, normal
from penstock.runtime.frameworks import check_options, choose, decoded, labels_of, one_table, require, table_spec

OPTIONS: tuple[str, ...] = ()
_FORMATS = {".cbm": "cbm", ".json": "json"}
_JSON_KEYS = (b'"features_info"', b'"model_info"', b'"oblivious_trees"', b'"ctr_data"', b'"trees"')
_HEAD_BYTES = 512


class CatboostModel:
    """The servable of a model."""

    def __init__(self, model: Any, columns: Sequence[TensorSpec] | None, threads: int, signature: Signature) -> None:
        self.signature = signature
        self._model = model
        self._columns = columns
        self._threads = threads
        self._kinds = {spec.name: spec for spec in signature.outputs}

    def predict(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Tensors:
        table = one_table(inputs, self.signature.inputs[0]) if self._columns is None else _rows(inputs, self._columns)
        found = _answer(self._model, table, self._threads, self._kinds)
        return {name: found[name] for name in self._kinds}

    def close(self) -> None:
        """Nothing to free."""


class CatboostAdapter:
    """CatBoost."""

    name = "catboost"
    inline_safe = False
    preload: tuple[str, ...] = ()

    def recognises(self, path: Path) -> bool:
        if path.suffix.lower() not in _FORMATS or not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if path.suffix.lower() == ".cbm":
            return True
        return head.lstrip().startswith(b"{") and any(key in head for key in _JSON_KEYS) and b'"learner"' not in head

    def load(self, path: Path, context: LoadContext) -> Servable:
        check_options(context.options, OPTIONS, self.name)
        catboost = require("catboost", "catboost", "catboost")
        model = catboost.CatBoost()
        try:
            model.load_model(str(path), format=_FORMATS.get(path.suffix.lower(), "cbm"))
        except (catboost.CatBoostError, ValueError) as error:
            raise LoadError(f"CatBoost cannot load {path.name}: {str(error).splitlines()[0]}") from error
        columns = _columns(model, context)
        inputs = (table_spec(context, len(model.feature_names_), "FP32"),) if columns is None else tuple(columns)
        zeros: Any = {
            spec.name: np.full(2, b"", object) if spec.datatype == "BYTES" else np.zeros(2, NUMPY_OF[spec.datatype])
            for spec in inputs
        }
        table = (
            np.zeros((2, inputs[0].shape[1]), NUMPY_OF[inputs[0].datatype])
            if columns is None
            else _rows(zeros, columns)
        )
        wanted = ("predict", "predict_proba") if len(model.classes_) else ("predict",)
        try:
            shown = _answer(model, table, context.threads, wanted)
        except catboost.CatBoostError as error:
            raise LoadError(f"CatBoost cannot run {path.name}: {str(error).splitlines()[0]}") from error
        outputs = choose(
            [
                TensorSpec(
                    name,
                    datatype_of(array),
                    (-1, *array.shape[1:]),
                    labels=labels_of(model.classes_) if name == "predict_proba" else (),
                )
                for name, array in shown.items()
            ],
            context,
            "output",
        )
        signature = Signature(
            inputs=inputs,
            outputs=outputs,
            platform="catboost",
            batchable=rows_along_axis_0(*inputs),
            metadata={
                "catboost": str(catboost.__version__),
                "objective": str(model.get_all_params().get("loss_function", "")),
                "features": ",".join(str(name) for name in model.feature_names_),
            },
        )
        return CatboostModel(model, columns, context.threads, signature)


def _columns(model: Any, context: LoadContext) -> list[TensorSpec] | None:
    """One spec per feature, in the model's order, when some are not numbers; None when one table will do."""
    words = {*model.get_cat_feature_indices(), *model.get_text_feature_indices()}
    if model.get_embedding_feature_indices():
        raise LoadError("models with embedding features are not served by this adapter; write a Python model around it")
    if not words:
        return None
    declared = {spec.name: spec for spec in context.inputs}
    specs = []
    for index, name in enumerate(str(name) for name in model.feature_names_):
        spec = declared.pop(name, None) or TensorSpec(name, "BYTES" if index in words else "FP32", (-1,))
        if spec.shape != (-1,) or (index not in words and spec.datatype == "BYTES"):
            raise LoadError(f"feature '{name}' is declared {spec.datatype}{list(spec.shape)}; it is one value per row")
        specs.append(spec)
    if declared:
        raise LoadError(f"the model has no feature {', '.join(declared)}; it has {', '.join(s.name for s in specs)}")
    return specs


def _rows(inputs: Tensors, columns: Sequence[TensorSpec]) -> Array:
    """(n, features) objects: numbers as they are, words as text."""
    out = np.empty((len(inputs[columns[0].name]), len(columns)), dtype=object)
    for index, spec in enumerate(columns):
        column = inputs[spec.name]
        out[:, index] = decoded(column) if spec.datatype == "BYTES" else column
    return out


def _answer(model: Any, table: Array, threads: int, wanted: Sequence[str] | Mapping[str, object]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    classes = len(model.classes_) > 0
    if "predict" in wanted:
        values = np.asarray(
            model.predict(table, prediction_type="Class" if classes else "RawFormulaVal", thread_count=threads)
        )
        values = values.reshape(len(table)) if values.ndim == 2 and values.shape[1] == 1 else values
        found["predict"] = normal(values)
    if "predict_proba" in wanted:
        found["predict_proba"] = np.asarray(model.predict(table, prediction_type="Probability", thread_count=threads))
    return found


plug = CatboostAdapter()
