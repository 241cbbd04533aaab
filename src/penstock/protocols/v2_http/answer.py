"""A V2 inference answer: JSON, or JSON with tensors in binary behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import orjson

from penstock.core.classification import classify
from penstock.core.compression import compress, wished_encoding
from penstock.core.errors import InvalidInput
from penstock.core.json_tensor import texts_of_array
from penstock.core.messages import Request, Response
from penstock.core.servable import Signature
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec, datatype_of, normal, to_wire
from penstock.protocols import HttpResponse

_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True, slots=True)
class OutputWish:
    """What a request says about one output. `binary` None: as the request says; `classes` 0: the tensor itself."""

    binary: bool | None = None
    classes: int = 0


@dataclass(slots=True)
class InferExchange:
    """One V2 call. `binary` is the form of outputs without a wish of their own."""

    request: Request
    signature: Signature
    accept_encoding: str = ""
    binary: bool = False
    wishes: dict[str, OutputWish] = field(default_factory=dict)

    def encode(self, response: Response) -> HttpResponse:
        """Raises: InvalidInput when an output cannot be had in the form that was wished."""
        head, parts = self.document(response)
        text = orjson.dumps(head, option=_NUMPY)
        if parts is None:
            answer = HttpResponse(200, text)
        else:
            length = (("Inference-Header-Content-Length", str(len(text))),)
            answer = HttpResponse(200, [text, *parts], "application/octet-stream", length)
        return compressed(answer, self.accept_encoding) if self.accept_encoding else answer

    def document(self, response: Response) -> tuple[dict[str, object], list[bytes | memoryview] | None]:
        """The JSON part of the answer, for orjson, and the tensors behind it; None when all of them are JSON.

        Raises: as `encode`.
        """
        outputs: list[dict[str, object]] = []
        parts: list[bytes | memoryview] | None = None
        specs, wishes, binary = self.signature.outputs, self.wishes, self.binary
        for name, array in response.outputs.items():
            datatype = _datatype(name, array, specs)
            if wishes and (wish := wishes.get(name)):
                if wish.classes:
                    array, datatype = self._classes(name, array, wish.classes), "BYTES"
                as_binary = binary if wish.binary is None else wish.binary
            else:
                as_binary = binary
            if as_binary:
                data = to_wire(array, datatype)
                parts = [] if parts is None else parts
                parts.append(data)
                outputs.append(
                    {
                        "name": name,
                        "datatype": datatype,
                        "shape": array.shape,
                        "parameters": {"binary_data_size": len(data)},
                    }
                )
            else:
                outputs.append(
                    {"name": name, "datatype": datatype, "shape": array.shape, "data": _flat(name, array, datatype)}
                )
        head: dict[str, object] = {"model_name": response.model, "model_version": response.version, "outputs": outputs}
        if identity := response.id or self.request.id:
            head["id"] = identity
        if response.parameters:
            head["parameters"] = dict(response.parameters)
        return head, parts

    def _classes(self, name: str, array: Array, count: int) -> Array:
        labels = next((spec.labels for spec in self.signature.outputs if spec.name == name), ())
        try:
            return classify(array, count, labels, batched=self.signature.batchable)
        except InvalidInput as error:
            raise InvalidInput(f"output '{name}': {error}") from None


def compressed(answer: HttpResponse, accept_encoding: str) -> HttpResponse:
    """`answer`, compressed when its client and its size make that worthwhile."""
    parts = (answer.body,) if isinstance(answer.body, bytes) else answer.body
    encoding = wished_encoding(accept_encoding, sum(map(len, parts)))
    if encoding:
        answer.body = compress(parts, encoding)
        answer.headers = (*answer.headers, ("Content-Encoding", encoding), ("Vary", "Accept-Encoding"))
    return answer


def _datatype(name: str, array: Array, specs: tuple[TensorSpec, ...]) -> str:
    for spec in specs:  # a handful at most: a loop is cheaper than a dict that would have to be made
        if spec.name == name:
            # What the array holds decides; the spec only tells BF16 from FP32, which look alike in memory.
            return spec.datatype if array.dtype == NUMPY_OF[spec.datatype] else datatype_of(array)
    return datatype_of(array)


def _flat(name: str, array: Array, datatype: str) -> object:
    if datatype == "BYTES":
        return texts_of_array(name, array)
    if datatype in ("FP16", "BF16"):
        raise InvalidInput(
            f"output '{name}' is {datatype}, which has no JSON form: ask for it with the parameter binary_data true"
        )
    return array.ravel() if array.dtype.isnative else normal(array).ravel()
