"""Arrays to V2 requests and V2 answers to arrays, in binary; JSON answers are understood too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import orjson

from penstock.core.errors import Internal, InvalidInput, PenstockError
from penstock.core.messages import Parameter
from penstock.core.tensor import NUMPY_OF, Array, datatype_of, element_count, from_wire, to_wire

ArrayLike = npt.ArrayLike
Buffer = bytes | bytearray | memoryview
LENGTH_HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True, eq=False)
class Result(Mapping[str, Array]):
    """One answer: its outputs by name, each an array of the caller's own. BYTES are object arrays of `bytes`."""

    model: str
    version: str
    outputs: dict[str, Array]
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds by part; with `timing=True` only

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    def text(self, name: str) -> Array:
        """A BYTES output as an object array of `str`. Raises: UnicodeDecodeError, KeyError."""
        array = self.outputs[name]
        out = np.empty(array.shape, dtype=object)
        out.ravel()[:] = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
        return out


@dataclass(frozen=True, slots=True)
class Ask:
    """One inference as its caller wishes it."""

    model: str
    inputs: Mapping[str, ArrayLike]
    version: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    request_id: str = ""
    datatypes: Mapping[str, str] = field(default_factory=dict)


def undecided(ask: Ask) -> bool:
    """Whether an input is of no certain datatype (a list, a number), so that the model's metadata must be asked."""
    return any(
        name not in ask.datatypes and not hasattr(value, "dtype") and not _is_text(value)
        for name, value in ask.inputs.items()
    )


def decided(ask: Ask, known: Mapping[str, str]) -> Ask:
    """`ask` with the datatypes of its undecided inputs, from the model's metadata; names it does not know stay so."""
    found = {
        name: known[name]
        for name, value in ask.inputs.items()
        if name in known and not hasattr(value, "dtype") and name not in ask.datatypes
    }
    return replace(ask, datatypes={**ask.datatypes, **found})


def encode(ask: Ask, timeout_s: float | None) -> tuple[int, list[Buffer]]:
    """The request's body: the length of its JSON part, and its parts.

    Raises:
        InvalidInput: no inputs, or one that no datatype can carry.
    """
    if not ask.inputs:
        raise InvalidInput("a request needs at least one input")
    heads: list[dict[str, object]] = []
    parts: list[Buffer] = [b""]
    for name, value in ask.inputs.items():
        datatype, shape, data = _tensor(name, value, ask.datatypes.get(name))
        parts.append(data)
        heads.append(
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        )
    parameters: dict[str, Parameter] = dict(ask.parameters)
    body: dict[str, object] = {"inputs": heads, "parameters": parameters}
    if ask.request_id:
        body["id"] = ask.request_id
    if ask.outputs:
        body["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in ask.outputs]
    else:
        parameters["binary_data_output"] = True
    if timeout_s is not None:
        parameters.setdefault("timeout", max(1, int(timeout_s * 1e6)))  # the protocol's unit: microseconds
    try:
        parts[0] = orjson.dumps(body)
    except TypeError as error:
        raise InvalidInput(f"parameters must be numbers, strings or booleans: {error}") from None
    return len(parts[0]), parts


def decode(body: bytes | bytearray, headers: Mapping[str, str], timings: Mapping[str, float]) -> Result:
    """The answer of one inference; its arrays share the memory of `body`.

    Raises:
        Internal: the answer does not hold together.
    """
    try:
        size = int(headers.get(LENGTH_HEADER.lower(), len(body)))
        if not 0 <= size <= len(body):
            raise ValueError(f"a JSON part of {size} bytes in a body of {len(body)}")
        view = memoryview(body)
        head = orjson.loads(view[:size])
        at = size
        outputs: dict[str, Array] = {}
        for output in head["outputs"]:
            name, datatype, shape = output["name"], output["datatype"], tuple(output["shape"])
            binary = (output.get("parameters") or {}).get("binary_data_size")
            if binary is None:
                outputs[name] = _from_json(output["data"], datatype, shape)
            else:
                outputs[name] = from_wire(view[at : at + binary], datatype, shape)
                at += binary
        if at != len(body):
            raise ValueError(f"outputs of {at} bytes in a body of {len(body)}")
        return Result(
            model=head.get("model_name") or "",
            version=str(head.get("model_version") or ""),
            outputs=outputs,
            id=head.get("id") or "",
            parameters=head.get("parameters") or {},
            timings=timings,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, PenstockError) as error:
        raise Internal(f"the server's answer cannot be read: {type(error).__name__}: {error}") from error


def server_timing(value: str) -> dict[str, float]:
    """The durations of a Server-Timing header in seconds, by name; what cannot be read is left out."""
    timings: dict[str, float] = {}
    for entry in value.split(","):
        name, *options = (part.strip() for part in entry.split(";"))
        for option in options:
            key, _, number = option.partition("=")
            if key.strip().lower() == "dur":
                try:
                    timings[name] = float(number.strip().strip('"')) / 1e3
                except ValueError:
                    continue
    return timings


def _is_text(value: object) -> bool:
    if isinstance(value, str | bytes):
        return True
    return isinstance(value, list | tuple) and bool(value) and _is_text(value[0])


def _tensor(name: str, value: ArrayLike, datatype: str | None) -> tuple[str, list[int], Buffer]:
    if datatype is not None and datatype not in NUMPY_OF:
        raise InvalidInput(f"input '{name}': unknown datatype {datatype!r}; one of {', '.join(NUMPY_OF)}")
    try:
        if getattr(getattr(value, "dtype", None), "name", "") == "bfloat16":  # of the ml_dtypes package
            bits = np.ascontiguousarray(value)
            if datatype in (None, "BF16"):
                return "BF16", list(np.shape(value)), bits.tobytes()
            value = bits.astype(np.float32)
        if datatype == "BYTES" or (datatype is None and _is_text(value)):
            array = _objects(value)
        else:
            array = np.asarray(value)
        if datatype is None:
            datatype = datatype_of(array)
        elif datatype != "BYTES":
            array = _cast(array, NUMPY_OF[datatype])
        return datatype, list(array.shape), to_wire(array, datatype)
    except (PenstockError, ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"input '{name}': {error}") from None


def _objects(value: ArrayLike) -> Array:
    """Text and bytes as an object array: numpy's own fixed-width text would cut zero bytes off the ends."""
    return value if isinstance(value, np.ndarray) else np.array(value, dtype=object)


def _cast(array: Array, dtype: np.dtype[np.generic]) -> Array:
    """The array as `dtype`, when no value is lost but by rounding a float to a shorter one."""
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "OSU":
        raise InvalidInput(f"text or mixed values cannot be sent as {dtype}")
    if array.size and array.dtype.kind in "iuf" and dtype.kind in "iub":
        with np.errstate(invalid="ignore"):  # what does not fit is found by comparing
            cast = array.astype(dtype)
        if not np.array_equal(cast.astype(array.dtype), array):
            raise InvalidInput(f"values do not fit {dtype}")
        return cast
    return array.astype(dtype)


def _from_json(data: object, datatype: str, shape: tuple[int, ...]) -> Array:
    dtype = NUMPY_OF[datatype]
    element_count(shape)  # refuses the -1 that numpy would take for "as many as there are"
    if datatype != "BYTES":
        array = np.array(data, dtype=dtype)
        if dtype.kind in "iu" and np.asarray(data).dtype.kind == "f" and (array != np.asarray(data)).any():
            raise ValueError(f"fractions in an output of {datatype}")  # which numpy would cut off
        return array.reshape(shape)
    flat: list[object] = [data]
    while flat and isinstance(flat[0], list):
        flat = [item for part in flat for item in part]  # type: ignore[attr-defined]  # each part is a list, as the first
    out = np.empty(len(flat), dtype=object)
    out[:] = [item.encode() if isinstance(item, str) else item for item in flat]
    return out.reshape(shape)
