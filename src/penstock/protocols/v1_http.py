"""KServe's V1 protocol: rows or named columns in plain JSON, typed by what the model says about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from penstock.core.compression import ACCEPTED, decompress
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, PenstockError, Unsupported
from penstock.core.http_status import error_headers, http_status
from penstock.core.json_body import error_json, read_object
from penstock.core.json_rows import columns_of_rows, inputs_of_columns, rows_of_columns
from penstock.core.json_tensor import json_of_array
from penstock.core.messages import Request, Response, Timings
from penstock.core.sample import sample_rows
from penstock.core.servable import Signature
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, InferRoute, Route

_PREDICT: Final[Mapping[str, object]] = {
    "description": "`instances` is a list of rows; `inputs` is the whole input, or one value for each named input.",
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"instances": {"type": "array", "items": {}}, "inputs": {}}}
            }
        },
    },
    "responses": {
        "200": {
            "description": "The predictions",
            "content": {"application/json": {"schema": {"type": "object", "required": ["predictions"]}}},
        }
    },
}


@dataclass(slots=True)
class PredictExchange:
    """One call. With `by_row`, several outputs are answered as one object for each row."""

    request: Request
    by_row: bool

    def encode(self, response: Response) -> HttpResponse:
        """`{"predictions": …}`: a list for one output, named values for several."""
        values = {name: json_of_array(array) for name, array in response.outputs.items()}
        predictions: object
        if len(values) == 1:
            (predictions,) = values.values()
        else:
            predictions = rows_of_columns(response.outputs) if self.by_row else values
        return HttpResponse(200, orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY))


class V1Http:
    """The protocol's routes and its errors. `GET /` belongs to `openapi_http`, `GET /v1/models` and a model's state to
    `openai_http`, whose clients ask the same paths, loading and unloading to `v2_http`."""

    name = "v1_http"
    title = "KServe V1"

    def routes(self) -> Sequence[Route]:
        """Every path of the protocol."""
        model = "/v1/models/{model}"
        return [
            InferRoute("POST", f"{model}:predict", decode, "Predict rows or named inputs", _PREDICT, example),
            CallRoute("POST", f"{model}:explain", explain, "Not supported"),
        ]

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        """`{"error": …}` with the status of `core.http_status`."""
        headers = error_headers(error)
        if isinstance(error, Unsupported) and b"content-encoding" in request.headers:
            headers += (("Accept-Encoding", ACCEPTED),)
        return HttpResponse(http_status(error), error_json(error), headers=headers)


def decode(http: HttpRequest, door: Door) -> PredictExchange:
    """The call in `http`. The Content-Type is not looked at: clients forget it.

    Raises:
        InvalidInput, TooLarge, Unsupported, NotFound, NotReady.
    """
    model = http.match["model"]
    signature = door.signature(model)
    body = read_object(decompress(http.body, http.header(b"content-encoding"), http.limits.decompressed_bytes))
    request = Request(model, {}, timings=Timings(http.received))
    instances, columns = body.get("instances"), body.get("inputs")
    if (instances is None) == (columns is None):
        raise InvalidInput('the body needs either "instances", a list of rows, or "inputs"')
    if instances is not None:
        if not isinstance(instances, list):
            raise InvalidInput('"instances" must be a list of rows')
        request.inputs = columns_of_rows(instances, signature.inputs)
    else:
        request.inputs = inputs_of_columns(columns, signature.inputs)
    return PredictExchange(request, by_row=instances is not None)


def example(signature: Signature) -> Mapping[str, object] | None:
    """A body that `decode` takes; None when it would be too long."""
    samples = {spec.name: sample_rows(spec) for spec in signature.inputs if not spec.optional}
    if not samples or any(value is None for value in samples.values()):
        return None
    return {"instances": next(iter(samples.values()))} if len(samples) == 1 else {"inputs": samples}


async def explain(http: HttpRequest, door: Door) -> HttpResponse:
    """Raises: NotFound, NotReady, and otherwise Unsupported."""
    door.signature(http.match["model"])
    raise Unsupported("this model has no explainer; ask :predict")


plug = V1Http()
