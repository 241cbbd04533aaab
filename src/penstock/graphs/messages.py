"""SeldonMessages as tensors and back, and how the `meta` of several comes together.

Source: https://docs.seldon.io/projects/seldon-core/en/v1/reference/apis/prediction.html
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Final, cast

import numpy as np

from penstock.core.errors import InvalidInput
from penstock.core.servable import Signature
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec

Message = dict[str, object]

_KINDS: Final = ("data", "binData", "strData", "jsonData", "customData")
_FORMS: Final = ("tensor", "ndarray", "tftensor")


def check(value: object, what: str = "the message") -> Message:
    """`value` as a SeldonMessage. Raises: InvalidInput."""
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} is no JSON object")
    given = [kind for kind in _KINDS if value.get(kind) is not None]
    if len(given) > 1:
        raise InvalidInput(f"{what} holds {' and '.join(given)}; it has one of {', '.join(_KINDS)}")
    if not isinstance(value.get("meta", {}), dict):
        raise InvalidInput(f"{what}: meta is no object")
    return value


def form(message: Message) -> str:
    """How its data is written: tensor, ndarray, tftensor, binData, strData, jsonData or customData."""
    data = message.get("data")
    if isinstance(data, dict):
        return next((each for each in _FORMS if each in data), "ndarray")
    return next((kind for kind in _KINDS if message.get(kind) is not None), "ndarray")


def inputs(message: Message, signature: Signature) -> dict[str, Array]:
    """The message as a model's inputs: the whole data for a model of one input, columns by name for one of several,
    `jsonData` by input name.

    Raises:
        InvalidInput: it does not fit.
    """
    specs = signature.inputs
    values = message.get("jsonData")
    if isinstance(values, dict) and specs and any(spec.name in values for spec in specs):
        return {spec.name: _array(values[spec.name], spec) for spec in specs if spec.name in values}
    if values is not None:
        return _only(specs, values)
    if isinstance(message.get("strData"), str):
        return _only(specs, [message["strData"]])
    if message.get("binData") is not None:
        try:
            data = base64.b64decode(str(message["binData"]), validate=True)
        except (binascii.Error, ValueError):
            raise InvalidInput("binData is no base64") from None
        return _only(specs, np.array([data], dtype=object))
    array = values_of(message)
    if len(specs) <= 1:
        return _only(specs, array)
    names = _names(message)
    if array.ndim == 2 and len(names) > array.shape[1]:
        raise InvalidInput(f"data.names has {len(names)} names, and the data {array.shape[1]} columns")
    columns = {name: array[:, index] for index, name in enumerate(names)} if array.ndim == 2 else {}
    missing = [spec.name for spec in specs if spec.name not in columns and not spec.optional]
    if missing:
        raise InvalidInput(f"the model takes {', '.join(spec.name for spec in specs)}; data.names lacks {missing[0]!r}")
    return {
        spec.name: _array(columns[spec.name] if len(spec.shape) < 2 else columns[spec.name][:, None], spec)
        for spec in specs
        if spec.name in columns
    }


def values_of(message: Message) -> Array:
    """The array in `data`. Raises: InvalidInput."""
    data = message.get("data")
    if not isinstance(data, dict):
        raise InvalidInput("the message has no data; it has one of data, strData, binData, jsonData")
    try:
        if "tensor" in data:
            tensor = cast("Mapping[str, object]", data["tensor"])
            return np.asarray(tensor["values"], dtype=np.float64).reshape(cast("Sequence[int]", tensor["shape"]))
        if "ndarray" in data:
            return np.asarray(data["ndarray"])
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InvalidInput(f"the message's data cannot be read: {error}") from None
    raise InvalidInput("data has one of tensor, ndarray; tftensor is not known here")


def _names(message: Message) -> list[str]:
    data = message.get("data")
    names = data.get("names") if isinstance(data, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _only(specs: tuple[TensorSpec, ...], value: object) -> dict[str, Array]:
    if len(specs) > 1:
        raise InvalidInput(
            f"the model takes {', '.join(spec.name for spec in specs)}; send data with names, or jsonData"
        )
    if not specs:
        return {"input": np.asarray(value)}
    return {specs[0].name: _array(value, specs[0])}


def _array(value: object, spec: TensorSpec) -> Array:
    try:
        if spec.datatype == "BYTES":
            raw = np.asarray(value, dtype=object)
            out = np.empty(raw.size, dtype=object)
            out[:] = [each if isinstance(each, bytes) else str(each).encode() for each in raw.ravel().tolist()]
            return out.reshape(raw.shape)
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"it holds {array.dtype}")
        return array.astype(NUMPY_OF[spec.datatype])
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"the message does not fit input '{spec.name}' ({spec.datatype}): {error}") from None


def answer(outputs: Mapping[str, Array], signature: Signature, wanted: str, output: str = "") -> Message:
    """A message of a model's outputs, written as `wanted`. Of several outputs, `output` is the one that is meant;
    otherwise the first matrix of numbers (probabilities, which Seldon's servers answer with), else the first."""
    name = output if output in outputs else _main(outputs)
    array = outputs[name]
    spec = next((each for each in signature.outputs if each.name == name), None)
    if wanted == "jsonData":
        return {"jsonData": {each: _plain(value) for each, value in outputs.items()}}
    if array.dtype.kind in "OSU":
        if wanted in ("strData", "binData") and array.size == 1:
            item = array.ravel()[0]
            data = item if isinstance(item, bytes) else str(item).encode()
            if wanted == "binData":
                return {"binData": base64.b64encode(data).decode()}
            return {"strData": data.decode(errors="replace")}
        wanted = "ndarray"
    labels = list(spec.labels) if spec is not None and spec.labels else []
    return {"data": data_of(array, wanted, labels)}


def data_of(array: Array, wanted: str, names: Sequence[str] = ()) -> dict[str, object]:
    """The `data` of an array. Without names, columns are called t:0, t:1 and so on, as Seldon's wrapper does."""
    columns = array.shape[1] if array.ndim > 1 else 0
    shown = list(names) if len(names) == columns else [f"t:{index}" for index in range(columns)]
    if wanted == "tensor" and array.dtype.kind in "biuf":
        values = array.astype(np.float64).ravel().tolist()
        return {"names": shown, "tensor": {"shape": list(array.shape), "values": values}}
    return {"names": shown, "ndarray": _plain(array)}


def _plain(array: Array) -> object:
    if array.dtype.kind != "O":
        return array.tolist()
    flat = [each.decode(errors="replace") if isinstance(each, bytes) else each for each in array.ravel().tolist()]
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(array.shape).tolist()


def _main(outputs: Mapping[str, Array]) -> str:
    for name, array in outputs.items():
        if array.ndim == 2 and array.dtype.kind == "f":
            return name
    return next(iter(outputs))


def merged(metas: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """The `meta` of what units answered: tags, routing and requestPath together, later ones first; metrics in a row."""
    out: dict[str, object] = {}
    for meta in metas:
        for key in ("tags", "routing", "requestPath"):
            found = meta.get(key)
            if isinstance(found, Mapping) and found:
                have = out.setdefault(key, {})
                assert isinstance(have, dict)
                have.update(found)
        metrics = meta.get("metrics")
        if isinstance(metrics, list) and metrics:
            have_metrics = out.setdefault("metrics", [])
            assert isinstance(have_metrics, list)
            have_metrics.extend(metrics)
        if meta.get("puid"):
            out.setdefault("puid", meta["puid"])
    return out


def average(parts: Sequence[Message]) -> Message:
    """The elementwise mean, with the names and the form of the first. Raises: InvalidInput."""
    arrays = [values_of(part) for part in parts]
    if len({array.shape for array in arrays}) > 1:
        raise InvalidInput(f"the average of data of the shapes {sorted({str(list(a.shape)) for a in arrays})}")
    if any(array.dtype.kind not in "biuf" for array in arrays):
        raise InvalidInput("the average of data that holds text")
    mean = np.mean(np.stack([array.astype(np.float64) for array in arrays]), axis=0)
    return {"data": data_of(mean, form(parts[0]), _names(parts[0]))}


def rows(message: Message) -> int:
    """How many rows its data has; 1 where that cannot be said."""
    try:
        array = values_of(message)
    except InvalidInput:
        return 1
    return array.shape[0] if array.ndim else 1
