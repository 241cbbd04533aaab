"""`POST /predict/{model}`: for people with curl. JSON, CSV, .npy, text or a picture in; JSON, CSV or .npy out.

`reading` finds out what a body is, `npy` reads numpy's files safely, `writing` makes the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs

from penstock.core.compression import ACCEPTED, decompress
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, PenstockError, Unsupported
from penstock.core.http_status import error_headers, http_status
from penstock.core.json_body import error_json
from penstock.core.messages import Request, Timings
from penstock.core.sample import sample_rows
from penstock.core.servable import Signature
from penstock.protocols import HttpRequest, HttpResponse, InferRoute, Route
from penstock.protocols.predict_http.reading import read
from penstock.protocols.predict_http.writing import PredictExchange, answer_form

_BINARY: Final[Mapping[str, object]] = {"schema": {"type": "string", "format": "binary"}}
_OPERATION: Final[Mapping[str, object]] = {
    "description": "The value of a model's one input, its rows, or an object that names its inputs.",
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {}},
            "text/csv": {"schema": {"type": "string"}},
            "text/plain": {"schema": {"type": "string"}},
            "application/x-npy": _BINARY,
            "image/*": _BINARY,
        },
    },
    "responses": {
        "200": {
            "description": "The predictions: of one output its value, of several an object by name",
            "content": {
                "application/json": {"schema": {"type": "object", "required": ["model", "version", "predictions"]}},
                "text/csv": {"schema": {"type": "string"}},
                "application/x-npy": _BINARY,
            },
        }
    },
}


class PredictHttp:
    """The protocol's routes and its errors."""

    name = "predict_http"
    title = "Predict"

    def routes(self) -> Sequence[Route]:
        """Every path of the protocol."""
        return [
            InferRoute("POST", path, decode, "Predict from JSON, CSV, .npy, text or a picture", _OPERATION, example)
            for path in ("/predict/{model}", "/predict/{model}/{version}")
        ]

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        """`{"error": …}` with the status of `core.http_status`."""
        headers = error_headers(error)
        if isinstance(error, Unsupported) and b"content-encoding" in request.headers:
            headers += (("Accept-Encoding", ACCEPTED),)
        return HttpResponse(http_status(error), error_json(error), headers=headers)


def decode(http: HttpRequest, door: Door) -> PredictExchange:
    """The call in `http`. `?output=name` (also several times) answers only those outputs.

    Raises:
        InvalidInput, TooLarge, Unsupported, NotFound, NotReady.
    """
    model, version = http.match["model"], http.match.get("version", "")
    signature = door.signature(model, version)
    body = decompress(http.body, http.header(b"content-encoding"), http.limits.decompressed_bytes)
    request = Request(model, {}, version, timings=Timings(http.received))
    if http.query:
        request.outputs = _outputs(http.query, signature)
    form = answer_form(http.header(b"accept"), request.outputs or tuple(spec.name for spec in signature.outputs))
    request.inputs = read(body, http.header(b"content-type"), signature)
    return PredictExchange(request, form)


def example(signature: Signature) -> Mapping[str, object] | None:
    """A body that `decode` takes; None when it would be too long."""
    samples = {spec.name: sample_rows(spec) for spec in signature.inputs if not spec.optional}
    return samples if samples and all(value is not None for value in samples.values()) else None


def _outputs(query: str, signature: Signature) -> tuple[str, ...]:
    try:
        names = parse_qs(query, max_num_fields=64).get("output", [])
    except ValueError:
        raise InvalidInput("the query has too many fields") from None
    known = [spec.name for spec in signature.outputs]
    for name in names:
        if known and name not in known:
            raise InvalidInput(f"the model has no output '{name[:80]}'; it has {', '.join(known)}")
    return tuple(dict.fromkeys(names))


plug = PredictHttp()
