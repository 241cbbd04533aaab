"""LightGBM boosters in its own text format (`.txt`, `.lgb`, `.model`).

The one output, `predict`, is what `Booster.predict` gives: probabilities of classifiers, values of everything else.

Inline: the call crosses ctypes, which lets the GIL go, and takes about 16 µs for one row and 50 µs for 32. Loading is
guarded, because LightGBM does not check what it reads: a text file that is cut off ends the whole process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penstock.core.errors import LoadError
from penstock.core.messages import Parameter
from penstock.core.servable import LoadContext, Servable, Signature, Tensors
from penstock.core.tensor import NUMPY_OF, TensorSpec
from penstock.runtime.frameworks import check_options, choose, one_table, require, table_spec, text_option

OPTIONS = ("output", "dtype")
OUTPUTS = {
    "value": {},
    "raw": {"raw_score": True},
    "leaf": {"pred_leaf": True},
    "contributions": {"pred_contrib": True},
}
_SUFFIXES = (".txt", ".lgb", ".model")


class LightgbmModel:
    """The servable of a booster."""

    def __init__(self, booster: Any, arguments: Mapping[str, object], signature: Signature) -> None:
        self.signature = signature
        self._booster = booster
        self._arguments = dict(arguments)
        self._input = signature.inputs[0]
        self._name = signature.outputs[0].name
        self._dtype = NUMPY_OF[signature.outputs[0].datatype]

    def predict(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Tensors:
        found = self._booster.predict(one_table(inputs, self._input), **self._arguments)
        return {self._name: np.asarray(found).astype(self._dtype, copy=False)}

    def close(self) -> None:
        """Nothing to free."""


class LightgbmAdapter:
    """LightGBM."""

    name = "lightgbm"
    inline_safe = True
    preload = ("lightgbm",)

    def recognises(self, path: Path) -> bool:
        if path.suffix.lower() not in _SUFFIXES or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(16).splitlines()[:1] == [b"tree"]

    def load(self, path: Path, context: LoadContext) -> Servable:
        check_options(context.options, OPTIONS, self.name)
        _guard(path)
        lightgbm = require("lightgbm", "lightgbm", "lightgbm")
        try:
            booster = lightgbm.Booster(model_file=str(path))
        except (lightgbm.basic.LightGBMError, ValueError) as error:
            raise LoadError(f"LightGBM cannot load {path.name}: {error}") from error
        output = text_option(context.options, "output", "value", tuple(OUTPUTS))
        arguments = {**OUTPUTS[output], "num_threads": context.threads, "validate_features": False}
        datatype = text_option(context.options, "dtype", "FP64", ("FP64", "FP32"))
        given = table_spec(context, int(booster.num_feature()), datatype)
        shown = np.asarray(booster.predict(np.zeros((2, given.shape[1]), NUMPY_OF[given.datatype]), **arguments))
        known = TensorSpec(
            "predict",
            "INT32" if shown.dtype.kind == "i" else "FP64",
            (-1, *shown.shape[1:]),
            labels=tuple(str(index) for index in range(shown.shape[1])) if _classes(booster, output, shown) else (),
        )
        signature = Signature(
            inputs=(given,),
            outputs=choose([known], context, "output"),
            platform="lightgbm",
            batchable=True,
            inline_safe=True,
            metadata={
                "lightgbm": str(lightgbm.__version__),
                "objective": str(booster.params.get("objective", "")),
                "features": ",".join(booster.feature_name()),
            },
        )
        return LightgbmModel(booster, arguments, signature)


def _classes(booster: Any, output: str, shown: np.ndarray[Any, Any]) -> bool:
    return output == "value" and shown.ndim == 2 and shown.shape[1] == booster.num_model_per_iteration()


def _guard(path: Path) -> None:
    """Nothing, when each tree is as long as the head of the file says.

    Raises:
        LoadError: it is no LightGBM text file, or a part of it is missing.
    """
    data = path.read_bytes()
    head, _, body = data.partition(b"\nTree=0\n")
    sizes: list[int] = []
    for line in head.splitlines():
        if line.startswith(b"tree_sizes="):
            try:
                sizes = [int(size) for size in line.partition(b"=")[2].split()]
            except ValueError as error:
                raise LoadError(f"{path.name}: the list of tree sizes cannot be read ({error})") from error
    at = len(head) + 1
    for index, size in enumerate(sizes):
        if not data.startswith(b"Tree=%d\n" % index, at):
            raise LoadError(f"{path.name} is damaged: tree {index} of {len(sizes)} is not where it should be")
        at += size
    if not sizes or not body or not data.startswith(b"end of trees", at):
        raise LoadError(f"{path.name} is not a whole LightGBM model in text format. Save it with booster.save_model()")


plug = LightgbmAdapter()
