"""What adapters share without importing each other: finding a framework, and specs for tables of numbers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType

import numpy as np

from penstock.core.errors import InvalidInput, LoadError
from penstock.core.messages import Parameter
from penstock.core.servable import LoadContext, Tensors
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec


def require(module: str, package: str, extra: str) -> ModuleType:
    """The imported module.

    Raises:
        LoadError: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise LoadError(
            f"this model needs {package}, which is not installed here ({error}): pip install 'penstock[{extra}]'"
        ) from error
    except (ImportError, OSError) as error:
        raise LoadError(f"{package} is installed but cannot be imported: {error}") from error


def text_option(options: Mapping[str, Parameter], name: str, default: str, allowed: Sequence[str] = ()) -> str:
    """An option that is text.

    Raises:
        LoadError: the value is not one of `allowed`.
    """
    value = str(options.get(name, default))
    if allowed and value not in allowed:
        raise LoadError(f"option {name} = {value!r}: write one of {', '.join(allowed)}")
    return value


def check_options(options: Mapping[str, Parameter], known: Sequence[str], adapter: str) -> None:
    """Nothing, when every option is known.

    Raises:
        LoadError: an unknown option; the message names the nearest one.
    """
    import difflib

    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known) or 'none'}"
            raise LoadError(f"adapter {adapter} has no option {name!r}{hint}")


def table_spec(context: LoadContext, features: int, datatype: str) -> TensorSpec:
    """The one input of a model that takes a table: "input", (n, features), or what the user declared instead.

    Raises:
        LoadError: the declaration contradicts the model.
    """
    if not context.inputs:
        return TensorSpec("input", datatype, (-1, features))
    if len(context.inputs) != 1:
        raise LoadError(f"the model takes one table of {features} features, {len(context.inputs)} inputs are declared")
    spec = context.inputs[0]
    fits = len(spec.shape) == 2 and spec.shape[0] == -1 and (features == -1 or spec.shape[1] in (-1, features))
    if not fits or NUMPY_OF[spec.datatype].kind not in "fiub":
        raise LoadError(
            f"input '{spec.name}' is declared {spec.datatype}{list(spec.shape)}, the model takes numbers of shape "
            f"[-1, {features}]"
        )
    return TensorSpec(spec.name, spec.datatype, (-1, features))


def choose(available: Sequence[TensorSpec], context: LoadContext, what: str) -> tuple[TensorSpec, ...]:
    """`available` as the user declared it: a subset, in the declared order, with shapes made narrower.

    Raises:
        LoadError: a declared tensor does not exist, or has another datatype or shape.
    """
    declared = context.inputs if what == "input" else context.outputs
    if not declared:
        return tuple(available)
    by_name = {spec.name: spec for spec in available}
    chosen = []
    for spec in declared:
        known = by_name.get(spec.name)
        if known is None:
            raise LoadError(f"the model has no {what} '{spec.name}'; it has {', '.join(by_name)}")
        if spec.datatype != known.datatype or not _fits(spec.shape, known.shape):
            raise LoadError(
                f"{what} '{spec.name}' is declared {spec.datatype}{list(spec.shape)}, the model has "
                f"{known.datatype}{list(known.shape)} (-1 is any length)"
            )
        labels = spec.labels or known.labels
        chosen.append(TensorSpec(spec.name, spec.datatype, spec.shape, spec.optional or known.optional, labels))
    return tuple(chosen)


def one_table(inputs: Tensors, spec: TensorSpec) -> Array:
    """The one input.

    Raises:
        InvalidInput: it has another width than the model was trained with.
    """
    table = inputs[spec.name]
    if table.ndim != 2 or spec.shape[1] not in (-1, table.shape[1]):
        raise InvalidInput(f"input '{spec.name}' has shape {list(table.shape)}, the model expects {list(spec.shape)}")
    return table


def decoded(array: Array) -> Array:
    """An object array of `str` from one of `bytes`, same shape.

    Raises:
        InvalidInput: they are not UTF-8.
    """
    flat = array.ravel().tolist()
    out = np.empty(len(flat), dtype=object)
    try:
        out[:] = [item.decode() if isinstance(item, bytes) else str(item) for item in flat]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"text for this model must be UTF-8: {error}") from error
    return out.reshape(array.shape)


def labels_of(classes: Sequence[object] | Array) -> tuple[str, ...]:
    """Class names as text, for the classification extension."""
    return tuple(str(item) for item in np.asarray(classes).ravel().tolist())


def _fits(declared: tuple[int, ...], known: tuple[int, ...]) -> bool:
    return len(declared) == len(known) and all(k in (-1, d) or d == -1 for d, k in zip(declared, known, strict=True))
