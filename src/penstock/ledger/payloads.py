"""Requests whose only right answers are known: made up from a model's metadata, or given, and learnt in the calm.

A request body is spliced from parts made once, because the generator shares the machine with the server: the id and the
deadline are the only parts that differ. JSON is what every V2 server reads over HTTP; over gRPC, raw contents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

import numpy as np
import orjson

from penstock.client.calls import model_path
from penstock.client.tensors import decode
from penstock.core.errors import InvalidInput
from penstock.core.json_tensor import json_of_array
from penstock.core.protobuf import Schema, parse
from penstock.core.tensor import NUMPY_OF, Array, from_wire, to_wire

Arrays = Mapping[str, Array]
# Answers of one input may differ in the last digits when it is computed in batches of different sizes.
RTOL, ATOL = 1e-3, 1e-6
# Fewer pairs than this told apart, and a crossed answer would mostly go unseen.
MIN_TOLD_APART = 0.5


@dataclass(frozen=True, slots=True)
class Payload:
    """One request's inputs as bytes, without id and deadline, and the right outputs; without those, any are right."""

    inputs: Arrays
    json_inputs: bytes
    grpc_request: bytes
    expected: Arrays = field(default_factory=dict)

    def json_body(self, request_id: str, timeout_s: float) -> bytes:
        """The V2 JSON body. The deadline goes along in the protocol's unit, microseconds."""
        head = b'{"id":"%s","parameters":{"timeout":%d},"inputs":'
        return b"%b%b}" % (head % (request_id.encode(), max(1, int(timeout_s * 1e6))), self.json_inputs)

    def wrong(self, outputs: Arrays) -> str:
        """Why `outputs` are not the right ones; "" when they are."""
        for name, right in self.expected.items():
            got = outputs.get(name)
            if got is None:
                return f"output {name} is missing"
            if got.shape != right.shape:
                return f"output {name} has shape {list(got.shape)}, not {list(right.shape)}"
            if not alike(got, right):
                return f"output {name} is {_short(got)}, not {_short(right)}"
        return ""


class Payloads:
    """The payloads of one model, and what is needed to read its answers."""

    def __init__(self, model: str, version: str, inputs: Sequence[Arrays], datatypes: Mapping[str, str]) -> None:
        """`inputs` has one mapping for each payload. Raises: InvalidInput when there are none."""
        if not inputs:
            raise InvalidInput("at least one payload is needed")
        schema = Schema(resources.files("penstock.protocols.v2_grpc").joinpath("v2.binpb").read_bytes())
        self._request = schema.message("inference.ModelInferRequest")
        self._tensor = schema.message("inference.ModelInferRequest.InferInputTensor")
        self._response = schema.message("inference.ModelInferResponse")
        self._model, self._version, self._datatypes = model, version, dict(datatypes)
        self.items = [self._make(one) for one in inputs]
        self.told_apart = 0.0  # the share of pairs of payloads whose answers differ

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Payload:
        return self.items[index]

    @property
    def path(self) -> str:
        """The HTTP path that they are sent to."""
        return f"{model_path(self._model, self._version)}/infer"

    def learn(self, first: Sequence[Arrays], second: Sequence[Arrays]) -> None:
        """Takes the answers to each payload, asked twice, alone, as the right ones.

        Raises:
            InvalidInput: they differ from one time to the next, or hardly differ between payloads.
        """
        for number, (once, again) in enumerate(zip(first, second, strict=True)):
            learnt = replace(self.items[number], expected=once)
            why = learnt.wrong(again)
            if why:
                raise InvalidInput(
                    f"{self._model} answers the same inputs differently ({why}): no answer can be called right or wrong"
                )
            self.items[number] = learnt
        self.told_apart = told_apart(self.items)
        if self.told_apart < MIN_TOLD_APART and len(self.items) > 1:
            raise InvalidInput(
                f"only {self.told_apart:.0%} of the pairs of inputs get different answers from {self._model}: "
                "crossed answers would go unseen. Give inputs with different answers, one a row (--input)"
            )

    def grpc_body(self, index: int, request_id: str, timeout_s: float) -> bytes:
        """The ModelInferRequest of one payload, with the deadline as V2's `timeout`. Source: protobuf's wire format,
        where the fields of two messages may follow each other."""
        rest = self._request(id=request_id)
        rest.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
        return self.items[index].grpc_request + bytes(rest.SerializeToString())

    def read_json(self, body: bytes) -> tuple[str, str, Arrays]:
        """Request id, version and outputs of a V2 JSON answer. Raises: PenstockError when it is none."""
        result = decode(body, {}, {})
        return result.id, result.version, result.outputs

    def read_grpc(self, body: bytes) -> tuple[str, str, Arrays]:
        """Request id, version and outputs of a ModelInferResponse. Raises: PenstockError when it is none."""
        answer = parse(self._response, body)
        outputs: dict[str, Array] = {}
        raw = list(answer.raw_output_contents)
        for index, output in enumerate(answer.outputs):
            shape = tuple(output.shape)
            if index < len(raw):
                outputs[output.name] = from_wire(raw[index], output.datatype, shape)
            else:
                outputs[output.name] = _typed(output, shape)
        return answer.id, answer.model_version, outputs

    def _make(self, inputs: Arrays) -> Payload:
        heads = [
            {
                "name": name,
                "datatype": self._datatypes[name],
                "shape": list(array.shape),
                "data": json_of_array(np.ascontiguousarray(array).ravel()),
            }
            for name, array in inputs.items()
        ]
        request = self._request(
            model_name=self._model,
            model_version=self._version,
            inputs=[
                self._tensor(name=name, datatype=self._datatypes[name], shape=list(array.shape))
                for name, array in inputs.items()
            ],
            raw_input_contents=[bytes(to_wire(array, self._datatypes[name])) for name, array in inputs.items()],
        )
        json_inputs = orjson.dumps(heads, option=orjson.OPT_SERIALIZE_NUMPY, default=_text)
        return Payload(inputs, json_inputs, request.SerializeToString())


def alike(left: Array, right: Array) -> bool:
    """Whether two arrays of one shape are equal, up to rounding where they are floats."""
    if right.dtype.kind == "f" and left.dtype.kind == "f":
        scale = float(np.max(np.abs(right[np.isfinite(right)]), initial=0.0))
        return bool(np.allclose(left, right, rtol=RTOL, atol=ATOL + RTOL * 1e-2 * scale, equal_nan=True))
    return bool((left == right).all())


def told_apart(payloads: Sequence[Payload]) -> float:
    """The share of pairs of payloads whose right answers differ; 0 for one payload."""
    pairs = different = 0
    for index, one in enumerate(payloads):
        for other in payloads[:index]:
            pairs += 1
            different += bool(one.wrong(other.expected))
    return different / pairs if pairs else 0.0


def _typed(output: Any, shape: tuple[int, ...]) -> Array:
    """An output's typed contents. Raises: InvalidInput."""
    values = next((list(value) for _, value in output.contents.ListFields()), [])
    try:
        return np.array(values, dtype=NUMPY_OF[output.datatype]).reshape(shape)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"output {output.name} is no {output.datatype} of shape {list(shape)}: {error}") from None


def _text(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(f"{type(value).__name__} is nothing for JSON")


def _short(array: Array) -> str:
    return np.array2string(array.ravel()[:4], precision=5, threshold=4, separator=", ")
