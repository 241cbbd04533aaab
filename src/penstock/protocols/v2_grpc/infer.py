"""ModelInfer and ModelStreamInfer: messages in, requests out, responses back as messages."""

from __future__ import annotations

from typing import Any

from penstock.core.classification import classify
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, PenstockError, Unsupported
from penstock.core.messages import Parameter, Request, Response
from penstock.core.protobuf import Schema, length_prefix, parse, take_field
from penstock.core.servable import Signature
from penstock.core.tensor import Array, TensorSpec, datatype_of, to_wire
from penstock.protocols import GrpcRequest
from penstock.protocols.v2_grpc.contents import MOST_AXES, parameters_in, put_parameter, raw_array, typed_array

_RAW_INPUT, _RAW_OUTPUT, _INFER_RESPONSE = 7, 6, 2  # field numbers

# From this size on, walking the top level of a message (about 1 µs a field) is cheaper than copying its raw contents.
_WALK_FROM_BYTES = 32 << 10

_FINAL = "triton_final_response"
_WANT_EMPTY_FINAL = "triton_enable_empty_final_response"
_STATUS_ON_ERROR = "triton_grpc_error"

# Beside what begins with "triton_": never the model's. Answers over gRPC are always binary.
_RESERVED = frozenset(("binary_data_output", "headers"))


class Inference:
    """Decodes both inference methods' requests. One instance serves a listener."""

    def __init__(self, schema: Schema) -> None:
        self._request = schema.message("inference.ModelInferRequest")
        self.response = schema.message("inference.ModelInferResponse")
        self.stream_response = schema.message("inference.ModelStreamInferResponse")

    def decode(self, request: GrpcRequest, door: Door) -> Exchange:
        """The one-answer exchange of a ModelInfer message.

        Raises:
            Unsupported: the model answers with streams.
            InvalidInput, NotFound, NotReady, TooLarge.
        """
        exchange = self._exchange(request, door)
        if exchange.signature.streaming:
            raise Unsupported(
                f"model '{exchange.request.model}' answers with a stream (decoupled): use ModelStreamInfer"
            )
        return exchange

    def decode_stream(self, request: GrpcRequest, door: Door) -> StreamExchange:
        """The exchange of one ModelStreamInfer message. Raises: InvalidInput, NotFound, NotReady, TooLarge."""
        return StreamExchange(self._exchange(request, door), _status_on_error(request))

    def stream_error(self, error: PenstockError, request: GrpcRequest) -> bytes | None:
        """The answer to a ModelStreamInfer message that `decode_stream` refused; None: end the call with a status."""
        if _status_on_error(request):
            return None
        answer = self.stream_response(error_message=error.message or error.reason)
        try:
            message = parse(self._request, request.data)
        except InvalidInput:
            message = self._request()
        answer.infer_response.id = message.id
        answer.infer_response.model_name = message.model_name
        answer.infer_response.model_version = message.model_version
        data: bytes = answer.SerializeToString()
        return data

    def _exchange(self, wire: GrpcRequest, door: Door) -> Exchange:
        data, raw = wire.data, None
        if len(data) >= _WALK_FROM_BYTES and (walked := take_field(data, _RAW_INPUT)) is not None:
            data, raw = walked
        message = parse(self._request, data)
        model, version = message.model_name, message.model_version
        signature = door.signature(model, version)
        request = Request(
            model, _inputs(message, raw or message.raw_input_contents, wire.limits.tensor_bytes), version, message.id
        )
        request.deadline = wire.deadline
        request.timings.received = wire.received
        want_empty_final = False
        if message.parameters:
            want_empty_final = _take_reserved(request, parameters_in(message.parameters))
        classes: dict[str, int] = {}
        if message.outputs:
            request.outputs, classes = _outputs(message.outputs)
        return Exchange(self, request, signature, classes, want_empty_final)


class Exchange:
    """One request and how to answer it."""

    __slots__ = ("_classes", "_codec", "request", "signature", "want_empty_final")

    def __init__(
        self,
        codec: Inference,
        request: Request,
        signature: Signature,
        classes: dict[str, int],
        want_empty_final: bool,
    ) -> None:
        self._codec = codec
        self.request = request
        self.signature = signature
        self._classes = classes
        self.want_empty_final = want_empty_final

    def encode(self, response: Response) -> bytes:
        """A ModelInferResponse. Raises: InvalidInput when classification was asked of an output that has no numbers."""
        message, raw = self._message(response)
        return b"".join((message.SerializeToString(), *raw))

    def encode_item(self, response: Response, final: bool) -> bytes:
        """A ModelStreamInferResponse with this answer."""
        message, raw = self._message(response)
        message.parameters[_FINAL].bool_param = final
        head = message.SerializeToString()
        size = len(head) + sum(map(len, raw))
        return b"".join((length_prefix(_INFER_RESPONSE, size), head, *raw))

    def encode_empty(self, error: str = "") -> bytes:
        """A ModelStreamInferResponse without outputs: the last of a stream, or one with an error."""
        answer = self._codec.stream_response(error_message=error)
        head = answer.infer_response
        head.model_name, head.model_version, head.id = self.request.model, self.request.version, self.request.id
        if not error:
            head.parameters[_FINAL].bool_param = True
        data: bytes = answer.SerializeToString()
        return data

    def _message(self, response: Response) -> tuple[Any, list[bytes | memoryview]]:
        """The response without its raw contents, and those as ready bytes, so that large ones are copied once."""
        message = self._codec.response(
            model_name=response.model, model_version=response.version, id=self.request.id or response.id
        )
        for key, value in response.parameters.items():
            put_parameter(message.parameters, key, value)
        raw: list[bytes | memoryview] = []
        for name, array in response.outputs.items():
            spec = next((spec for spec in self.signature.outputs if spec.name == name), None)
            datatype, array = self._as_asked(name, array, spec)
            data = to_wire(array, datatype)
            message.outputs.add(name=name, datatype=datatype, shape=array.shape)
            raw.append(length_prefix(_RAW_OUTPUT, len(data)))
            raw.append(data)
        return message, raw

    def _as_asked(self, name: str, array: Array, spec: TensorSpec | None) -> tuple[str, Array]:
        classes = self._classes.get(name)
        if classes is not None:
            labels = spec.labels if spec is not None else ()
            return "BYTES", classify(array, classes, labels, batched=self.signature.batchable)
        # Only the signature can tell BF16, which is float32 in memory.
        return (spec.datatype if spec is not None and spec.datatype == "BF16" else datatype_of(array)), array


class StreamExchange:
    """One message of a stream. A model with one answer marks it as final; the end of a streaming model's answers is
    known only when they are over, so an empty final answer marks it, for clients that asked for one."""

    __slots__ = ("_exchange", "_status_on_error", "request")

    def __init__(self, exchange: Exchange, status_on_error: bool) -> None:
        self._exchange = exchange
        self._status_on_error = status_on_error
        self.request = exchange.request

    def encode_item(self, response: Response) -> bytes | None:
        return self._exchange.encode_item(response, final=not self._exchange.signature.streaming)

    def encode_end(self) -> bytes | None:
        if self._exchange.signature.streaming and self._exchange.want_empty_final:
            return self._exchange.encode_empty()
        return None

    def encode_error(self, error: PenstockError) -> bytes | None:
        return None if self._status_on_error else self._exchange.encode_empty(error.message or error.reason)


def _status_on_error(request: GrpcRequest) -> bool:
    return request.metadata.get(_STATUS_ON_ERROR, "").lower() == "true"


def _inputs(message: Any, raw: Any, most_bytes: int) -> dict[str, Array]:
    inputs: dict[str, Array] = {}
    tensors = message.inputs
    if raw and len(raw) != len(tensors):
        raise InvalidInput(
            f"raw_input_contents has {len(raw)} items for {len(tensors)} inputs; it needs one for each, in their order"
        )
    for index, tensor in enumerate(tensors):
        name = tensor.name
        if name in inputs:
            raise InvalidInput(f"input '{name}' is there twice")
        if tensor.parameters and "shared_memory_region" in tensor.parameters:
            raise Unsupported(f"input '{name}' is in shared memory, which this server does not offer")
        if len(tensor.shape) > MOST_AXES:  # before a tuple is made of what may be a hundred million numbers
            raise InvalidInput(f"input '{name}' has {len(tensor.shape)} axes, at most {MOST_AXES} are allowed")
        shape = tuple(tensor.shape)
        if not raw:
            inputs[name] = typed_array(name, tensor.datatype, shape, tensor.contents, most_bytes)
        elif tensor.HasField("contents") and tensor.contents.ListFields():
            raise InvalidInput(f"input '{name}' has typed contents beside raw_input_contents: use one of them")
        else:
            inputs[name] = raw_array(name, tensor.datatype, shape, raw[index], most_bytes)
    return inputs


def _outputs(asked: Any) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of the outputs asked for, and how many classes of which."""
    names: list[str] = []
    classes: dict[str, int] = {}
    for output in asked:
        if output.name in names:
            raise InvalidInput(f"output '{output.name}' is asked for twice")
        names.append(output.name)
        if not output.parameters:
            continue
        parameters = parameters_in(output.parameters)
        if "shared_memory_region" in parameters:
            raise Unsupported(f"output '{output.name}' is asked for in shared memory, which this server does not offer")
        if "classification" in parameters:
            count = _whole("classification", parameters["classification"])
            if count:  # 0 is what clients that always send it mean by "none"
                classes[output.name] = count
    return tuple(names), classes


def _take_reserved(request: Request, parameters: dict[str, Parameter]) -> bool:
    """Moves the protocol's own parameters to where they belong and gives the rest to the model; whether an empty final
    answer is wanted."""
    priority = parameters.pop("priority", None)
    if priority is not None:
        request.priority = _whole("priority", priority)
    timeout_us = parameters.pop("timeout", None)
    if timeout_us is not None and (timeout_us := _whole("timeout", timeout_us)):
        request.deadline = min(request.deadline, request.timings.received + timeout_us / 1e6)
    want_empty_final = parameters.pop(_WANT_EMPTY_FINAL, False)
    if not isinstance(want_empty_final, bool):
        raise InvalidInput(f"parameter '{_WANT_EMPTY_FINAL}' must be a boolean, got {want_empty_final!r}")
    request.parameters = {
        key: value for key, value in parameters.items() if key not in _RESERVED and not key.startswith("triton_")
    }
    return want_empty_final


def _whole(name: str, value: Parameter) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidInput(f"parameter '{name}' must be a whole number from 0, got {value!r}")
    return value
