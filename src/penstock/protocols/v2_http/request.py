"""A V2 inference request: JSON, JSON with tensors in binary behind it, or one raw tensor.

Which one it is, the header `Inference-Header-Content-Length` says, never the Content-Type: the widest used client
sends none. The header is the length of the JSON part before compression, so a body is decompressed first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from penstock.core.compression import decompress
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, TooLarge, Unsupported
from penstock.core.json_body import read_json
from penstock.core.json_tensor import BINARY_ONLY, array_of_json, check_shape
from penstock.core.messages import NO_DEADLINE, Parameter, Request, Timings
from penstock.core.sample import sample_flat, sample_shape
from penstock.core.servable import Signature
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec, element_count, from_wire
from penstock.protocols import HttpRequest, Limits
from penstock.protocols.v2_http.answer import InferExchange, OutputWish

# Typed, so that one pass both reads and checks; `data` stays text until its datatype is known. Null stands for
# "not given" throughout: KServe's client writes it.
Parameters = dict[str, bool | int | float | str | None]
_NO_DATA: Final = msgspec.Raw()


class JsonInput(msgspec.Struct, gc=False):
    name: str
    shape: tuple[int, ...]
    datatype: str
    data: msgspec.Raw = _NO_DATA
    parameters: Parameters | None = None


class JsonOutput(msgspec.Struct, gc=False):
    name: str
    parameters: Parameters | None = None


class JsonRequest(msgspec.Struct, gc=False):
    inputs: list[JsonInput]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[JsonOutput] | None = None


_DECODER: Final = msgspec.json.Decoder(JsonRequest)

# Parameters that are for the server. Sequence parameters are not among them: models may use them.
_RESERVED: Final = frozenset({"priority", "timeout", "binary_data_output", "headers"})
_LONGEST_US: Final = 1e18  # a timeout of 30,000 years; Python's integers, and so JSON's, have no end
_SHARED_MEMORY: Final = "shared-memory regions are not supported: send tensors as binary data in the request"


def decode(http: HttpRequest, door: Door) -> InferExchange:
    """The inference call in `http`.

    Raises:
        InvalidInput, TooLarge, Unsupported: the request is malformed, too large, or asks for what is not here.
        NotFound, NotReady: the model is.
    """
    model, version = http.match["model"], http.match.get("version", "")
    signature = door.signature(model, version)
    headers = http.headers
    body = http.body
    if b"content-encoding" in headers:
        body = decompress(body, http.header(b"content-encoding"), http.limits.decompressed_bytes)
    length = headers.get(b"inference-header-content-length")
    request = Request(model, {}, version, timings=Timings(http.received))
    exchange = InferExchange(request, signature, http.header(b"accept-encoding"))
    if length is None:
        _read(_parse(body), None, exchange, http.limits)
        return exchange
    json_bytes = _header_length(length, len(body))
    view = memoryview(body)
    if json_bytes == 0:
        request.inputs = _raw_input(view, signature, http.limits)
        exchange.binary = True
    else:
        _read(_parse(view[:json_bytes]), view[json_bytes:], exchange, http.limits)
    return exchange


def example(signature: Signature) -> dict[str, object] | None:
    """A JSON body that `decode` takes; None when it would be too long, or has no JSON form."""
    inputs: list[dict[str, object]] = []
    for spec in signature.inputs:
        if spec.optional:
            continue
        data = sample_flat(spec)
        if data is None or spec.datatype in BINARY_ONLY:
            return None
        inputs.append({"name": spec.name, "shape": sample_shape(spec), "datatype": spec.datatype, "data": data})
    return {"inputs": inputs}


def _parse(body: bytes | bytearray | memoryview) -> JsonRequest:
    return read_json(body, _DECODER)


def _read(body: JsonRequest, binary: memoryview | None, exchange: InferExchange, limits: Limits) -> None:
    request = exchange.request
    if body.id:
        request.id = body.id
    if body.parameters:
        exchange.binary = _take_parameters(request, body.parameters)
    if body.outputs:
        request.outputs = _outputs(body.outputs, exchange)
    names = exchange.signature.inputs
    if len(body.inputs) > len(names) > 0:
        raise InvalidInput(f"{len(body.inputs)} inputs were sent, the model takes {[spec.name for spec in names]}")
    inputs, at = request.inputs, 0
    for item in body.inputs:
        name, parameters = item.name, item.parameters
        if name in inputs:
            raise InvalidInput(f"input '{name}' was sent twice")
        size = None
        if parameters:
            if parameters.get("shared_memory_region") is not None:
                raise Unsupported(_SHARED_MEMORY)
            size = parameters.get("binary_data_size")
        if size is None:
            if item.data is _NO_DATA:
                raise InvalidInput(f"input '{name}' has neither data nor the parameter binary_data_size")
            inputs[name] = array_of_json(
                name, item.data, item.datatype, item.shape, limits.tensor_bytes, limits.json_depth
            )
        else:
            inputs[name] = _binary_input(item, size, binary, at, limits)
            at += int(size)
    if binary is not None and at != len(binary):
        raise InvalidInput(f"{len(binary)} bytes follow the JSON, the inputs' binary_data_size add up to {at}")


def _binary_input(item: JsonInput, size: Parameter, binary: memoryview | None, at: int, limits: Limits) -> Array:
    name = item.name
    if type(size) is not int or size < 0:
        raise InvalidInput(f"input '{name}': binary_data_size is {size!r}, it must be a number of bytes")
    if item.data is not _NO_DATA and bytes(memoryview(item.data)[:5]) != b"null":
        raise InvalidInput(f"input '{name}' has both data and the parameter binary_data_size")
    if binary is None:
        raise InvalidInput(
            f"input '{name}' is binary, but the header Inference-Header-Content-Length (bytes of JSON) is missing"
        )
    if size > len(binary) - at:
        raise InvalidInput(f"input '{name}' claims {size} bytes, {len(binary) - at} are left in the body")
    check_shape(name, item.datatype, item.shape, limits.tensor_bytes)
    try:
        return from_wire(binary[at : at + size], item.datatype, item.shape)
    except InvalidInput as error:
        raise InvalidInput(f"input '{name}': {error}") from None


def _header_length(value: bytes, body_bytes: int) -> int:
    # 19 digits hold any size; Python refuses to read numbers of thousands of digits with an error of its own.
    length = int(value) if value.isdigit() and len(value) < 20 else -1
    if not 0 <= length <= body_bytes:
        raise InvalidInput(
            f"Inference-Header-Content-Length is {value[:20]!r}, it must be a number up to the body's {body_bytes}"
        )
    return length


def _raw_input(data: memoryview, signature: Signature, limits: Limits) -> dict[str, Array]:
    """The one input whose bytes are the whole body. Its batch axis is 1; one other open axis follows from the size."""
    if len(signature.inputs) != 1:
        raise InvalidInput(f"a raw binary request needs a model of one input, this one has {len(signature.inputs)}")
    spec = signature.inputs[0]
    if len(data) > limits.tensor_bytes:
        raise TooLarge(f"input '{spec.name}' has {len(data)} bytes, at most {limits.tensor_bytes} are allowed")
    shape = list(spec.shape)
    if signature.batchable and shape:
        shape[0] = 1
    if spec.datatype == "BYTES":  # one element, without its length in front
        if any(axis not in (1, -1) for axis in shape):
            raise InvalidInput(f"a raw binary request is one element, the model takes {shape} of BYTES")
        return {spec.name: _one_element(data, len(shape))}
    _close_open_axis(spec, shape, len(data))
    return {spec.name: from_wire(data, spec.datatype, tuple(shape))}


def _close_open_axis(spec: TensorSpec, shape: list[int], size: int) -> None:
    if shape.count(-1) > 1:
        raise InvalidInput(f"a raw binary request has one open axis at most, the model takes {list(spec.shape)}")
    if -1 in shape:
        item_bytes = 2 if spec.datatype == "BF16" else NUMPY_OF[spec.datatype].itemsize
        row = item_bytes * element_count(tuple(axis for axis in shape if axis != -1))
        if not row or size % row:
            raise InvalidInput(f"{size} bytes are no whole number of rows of {row} bytes, shape {list(spec.shape)}")
        shape[shape.index(-1)] = size // row


def _one_element(data: memoryview, rank: int) -> Array:
    frame = len(data).to_bytes(4, "little") + bytes(data)
    return from_wire(frame, "BYTES", (1,) * rank)


def _outputs(wished: list[JsonOutput], exchange: InferExchange) -> tuple[str, ...]:
    known = {spec.name for spec in exchange.signature.outputs}
    names: list[str] = []
    for item in wished:
        if known and item.name not in known:
            raise InvalidInput(f"the model has no output '{item.name}'; it has {', '.join(sorted(known))}")
        if item.name in names:
            raise InvalidInput(f"output '{item.name}' is asked for twice")
        names.append(item.name)
        if item.parameters:
            exchange.wishes[item.name] = _wish(item.name, item.parameters)
    return tuple(names)


def _wish(name: str, parameters: Parameters) -> OutputWish:
    if parameters.get("shared_memory_region") is not None:
        raise Unsupported(_SHARED_MEMORY)
    binary, classes = parameters.get("binary_data"), parameters.get("classification")
    if binary is not None and type(binary) is not bool:
        raise InvalidInput(f"output '{name}': binary_data is {binary!r}, it must be true or false")
    if classes is not None and (type(classes) is not int or classes < 0):
        raise InvalidInput(f"output '{name}': classification is {classes!r}, it must be a number of classes")
    return OutputWish(binary, classes or 0)


def _take_parameters(request: Request, parameters: Mapping[str, Parameter | None]) -> bool:
    """Puts the server's parameters where they belong and the model's into `request.parameters`.

    Returns: whether outputs are wished in binary unless they say otherwise.
    """
    binary = parameters.get("binary_data_output")
    if binary is not None and type(binary) is not bool:
        raise InvalidInput(f"parameter binary_data_output is {binary!r}, it must be true or false")
    take_parameters(request, parameters)
    return bool(binary)


def take_parameters(request: Request, parameters: Mapping[str, Parameter | None]) -> None:
    """Sets deadline and priority from `parameters` and gives all but the reserved ones to the model.

    Raises:
        InvalidInput: a reserved parameter has a wrong value.
    """
    timeout, priority = parameters.get("timeout"), parameters.get("priority")
    if timeout is not None:
        request.deadline = _deadline(timeout, request.timings.received)
    if priority is not None:
        if type(priority) is not int or priority < 0:
            raise InvalidInput(f"parameter priority is {priority!r}, it must be a whole number, 0 for the default")
        request.priority = priority
    request.parameters = {
        key: value
        for key, value in parameters.items()
        if value is not None and key not in _RESERVED and not key.startswith("triton_")
    }


def _deadline(timeout_us: Parameter, received: float) -> float:
    """Raises: InvalidInput. Microseconds; 0 is none, as in Triton."""
    number = timeout_us
    if isinstance(number, str) and number.isdigit() and len(number) < 20:
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= _LONGEST_US:
        raise InvalidInput(f"parameter timeout is {timeout_us!r}, it must be a number of microseconds")
    return received + number / 1e6 if number else NO_DEADLINE
