"""scikit-learn estimators: `.skops` files, and pickles (`.pkl`, `.pickle`, `.joblib`) that the user trusts.

A `.skops` file is data: only types that skops itself trusts are made from it. A pickle is a program: it is opened only
with `context.trusted`, and only ever in a worker process.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penstock.core.declare import rows_along_axis_0
from penstock.core.errors import LoadError, PenstockError
from penstock.core.messages import Parameter
from penstock.core.servable import LoadContext, Servable, Signature, Tensors
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec, datatype_of, normal
from penstock.runtime.frameworks import check_options, choose, labels_of, require, table_spec, text_option

OPTIONS = ("outputs", "dtype")
METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function", "transform", "score_samples")
PICKLES = (".pkl", ".pickle", ".joblib")


class SklearnModel:
    """The servable: each output is the estimator's method of that name, its values as the method gave them."""

    def __init__(self, estimator: Any, frame: Any, signature: Signature) -> None:
        self.signature = signature
        self._frame = frame
        self._methods = {spec.name: getattr(estimator, spec.name) for spec in signature.outputs}
        self._dtypes = {spec.name: NUMPY_OF[spec.datatype] for spec in signature.outputs}

    def predict(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Tensors:
        table = self._frame(inputs)
        return {name: _as(method(table), self._dtypes[name]) for name, method in self._methods.items()}

    def close(self) -> None:
        """Nothing to free."""


class SklearnAdapter:
    """scikit-learn. Runs in worker processes only: an estimator may hold the GIL for long and may hold user code."""

    name = "sklearn"
    inline_safe = False
    preload: tuple[str, ...] = ()

    def recognises(self, path: Path) -> bool:
        return path.suffix.lower() in (".skops", *PICKLES) and path.is_file()

    def load(self, path: Path, context: LoadContext) -> Servable:
        check_options(context.options, OPTIONS, self.name)
        _check_trust(path, context.trusted)  # first: nobody should install a framework to be told this next
        sklearn = require("sklearn", "scikit-learn", "sklearn")
        estimator = _open(path, context.trusted)
        _limit_threads(estimator, context.threads)
        names = tuple(str(name) for name in getattr(estimator, "feature_names_in_", ()))
        inputs, frame = _inputs(estimator, names, context)
        outputs = choose(_outputs(estimator, inputs, frame, context), context, "output")
        metadata = {
            "scikit_learn": str(sklearn.__version__),
            "trained_with": str(getattr(estimator, "__dict__", {}).get("_sklearn_version", "")),
            "estimator": type(estimator).__name__,
        }
        if names:
            metadata["features"] = ",".join(names)
        signature = Signature(
            inputs=inputs,
            outputs=outputs,
            platform="sklearn",
            batchable=rows_along_axis_0(*inputs) and rows_along_axis_0(*outputs),
            metadata=metadata,
        )
        return SklearnModel(estimator, frame, signature)


def _check_trust(path: Path, trusted: bool) -> None:
    if path.suffix.lower() in PICKLES and not trusted:
        raise LoadError(
            f"{path.name} is a pickle, and opening a pickle runs whatever program is in it. If you know where it is "
            "from, start again with --trust PATH (in a file: trust = true); better, save the model with skops.io.dump"
        )


def _open(path: Path, trusted: bool) -> Any:
    with warnings.catch_warnings():
        # Files of other versions are allowed; `trained_with` in the metadata tells.
        warnings.simplefilter("ignore")
        if path.suffix.lower() == ".skops":
            return _open_skops(path, trusted)
        joblib = require("joblib", "joblib", "sklearn")
        try:
            estimator = joblib.load(path)
        except Exception as error:  # a pickle may raise anything
            raise LoadError(f"{path.name} cannot be opened: {type(error).__name__}: {error}") from error
    if not any(hasattr(estimator, method) for method in METHODS):
        raise LoadError(f"{path.name} holds a {type(estimator).__name__}, which has none of {', '.join(METHODS)}")
    return estimator


def _open_skops(path: Path, trusted: bool) -> Any:
    skops = require("skops.io", "skops", "sklearn")
    try:
        untrusted = skops.get_untrusted_types(file=path)
        if untrusted and not trusted:
            raise LoadError(
                f"{path.name} holds types that skops does not trust: {', '.join(sorted(untrusted))}. If you know where "
                "the file is from, start again with --trust (in a file: trust = true)"
            )
        return skops.load(path, trusted=untrusted)
    except PenstockError:
        raise
    except Exception as error:  # a broken zip, a broken schema, a missing type: skops has no base type for them
        raise LoadError(f"{path.name} cannot be opened: {type(error).__name__}: {error}") from error


def _limit_threads(estimator: Any, threads: int) -> None:
    """Sets every `n_jobs`: a model saved with n_jobs=-1 would take every core from the other workers."""
    params = estimator.get_params(deep=True) if hasattr(estimator, "get_params") else {}
    jobs = {name: threads for name in params if name == "n_jobs" or name.endswith("__n_jobs")}
    if jobs:
        estimator.set_params(**jobs)


def _inputs(estimator: Any, names: tuple[str, ...], context: LoadContext) -> tuple[tuple[TensorSpec, ...], Any]:
    """The input specs, and a function from inputs to what the estimator was trained with: an array or a DataFrame."""
    datatype = text_option(context.options, "dtype", "FP64", ("FP64", "FP32"))
    if names and len(context.inputs) > 1:
        return _columns(names, context)
    spec = table_spec(context, int(getattr(estimator, "n_features_in_", -1)), datatype)
    if not names:
        return (spec,), lambda inputs: inputs[spec.name]
    pandas = require("pandas", "pandas (the model was trained with a DataFrame)", "sklearn")
    # Copied, because pandas then lays columns out as it does for the user: the order of sums, and so the last bit of
    # them, depends on it.
    return (spec,), lambda inputs: pandas.DataFrame(inputs[spec.name], columns=list(names), copy=True)


def _columns(names: tuple[str, ...], context: LoadContext) -> tuple[tuple[TensorSpec, ...], Any]:
    """One declared tensor (n) or (n, 1) for each column of the training DataFrame, text among them."""
    pandas = require("pandas", "pandas (the model was trained with a DataFrame)", "sklearn")
    declared = {spec.name: spec for spec in context.inputs}
    if missing := [name for name in names if name not in declared]:
        raise LoadError(f"the model was trained with columns {', '.join(names)}; not declared: {', '.join(missing)}")
    if extra := [name for name in declared if name not in names]:
        raise LoadError(f"the model was trained with columns {', '.join(names)}; it has no {', '.join(extra)}")
    if wrong := [spec.name for spec in declared.values() if spec.shape not in ((-1,), (-1, 1))]:
        raise LoadError(f"declare one value per row for each column, such as 'f8[n]': {', '.join(wrong)}")

    def frame(inputs: Tensors) -> Any:
        columns = {name: inputs[name].reshape(-1) for name in names}
        text = {
            name: [item.decode() for item in array.tolist()] for name, array in columns.items() if array.dtype == "O"
        }
        return pandas.DataFrame({name: text.get(name, array) for name, array in columns.items()})

    return tuple(declared[name] for name in names), frame


def _outputs(estimator: Any, inputs: tuple[TensorSpec, ...], frame: Any, context: LoadContext) -> list[TensorSpec]:
    """What each chosen method gives: learnt from two rows of zeros, else from what the estimator says of itself."""
    chosen = text_option(context.options, "outputs", "")
    wanted = [name.strip() for name in chosen.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in METHODS or not hasattr(estimator, name)]:
        able = ", ".join(method for method in METHODS if hasattr(estimator, method))
        raise LoadError(f"a {type(estimator).__name__} has no {', '.join(unknown)}; outputs can be {able}")
    if not wanted:
        wanted = [spec.name for spec in context.outputs if spec.name in METHODS]
    if not wanted:
        wanted = [name for name in ("predict", "predict_proba") if hasattr(estimator, name)] or [
            next(name for name in METHODS if hasattr(estimator, name))
        ]
        if _many_targets(estimator) and "predict" in wanted:
            wanted = ["predict"]  # predict_proba of several targets is a list of tables, not one
    return [_output(estimator, name, inputs, frame) for name in wanted]


def _output(estimator: Any, name: str, inputs: tuple[TensorSpec, ...], frame: Any) -> TensorSpec:
    classes = () if _many_targets(estimator) else getattr(estimator, "classes_", ())
    labels = labels_of(classes) if len(classes) and name != "predict" and name != "transform" else ()
    if name.startswith("predict_") and _many_targets(estimator):
        raise LoadError(f"{name} of a model with several targets is a list of tables; choose outputs = 'predict'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = np.asarray(getattr(estimator, name)(frame({spec.name: _zeros(spec) for spec in inputs})))
        shape = (-1, *found.shape[1:])
        return TensorSpec(name, datatype_of(found), shape, labels=labels if len(labels) == shape[-1] else ())
    except Exception:  # whatever a model does with zeros: it may be right to refuse them
        if name == "predict":
            datatype = datatype_of(np.asarray(classes)) if len(classes) else "FP64"
            return TensorSpec(name, datatype, (-1, -1) if _many_targets(estimator) else (-1,))
        return TensorSpec(name, "FP64", (-1, len(labels) or -1), labels=labels)


def _zeros(spec: TensorSpec) -> Array:
    shape = tuple(2 if axis < 0 else axis for axis in spec.shape)
    return np.full(shape, b"", object) if spec.datatype == "BYTES" else np.zeros(shape, NUMPY_OF[spec.datatype])


def _many_targets(estimator: Any) -> bool:
    return isinstance(getattr(estimator, "classes_", None), list)


def _as(value: Any, dtype: np.dtype[np.generic]) -> Array:
    """A method's answer as the declared type; sparse results become dense."""
    array = np.asarray(value.toarray() if hasattr(value, "toarray") else value)
    return normal(array) if dtype.kind == "O" else array.astype(dtype, copy=False)


plug = SklearnAdapter()
