"""Seldon Core 1's external REST API, for the only Seldon graph of a server: predictions, feedback, metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from penstock.core import graph_calls
from penstock.core.compression import decompress
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, NotFound, PenstockError, Unauthenticated
from penstock.core.http_status import error_headers, http_status
from penstock.core.json_body import error_json
from penstock.core.messages import Parameter, Request, Response, Timings
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, InferRoute, Route

_MESSAGE: Final[Mapping[str, object]] = {
    "description": "A SeldonMessage: one of data, strData, binData, jsonData, and meta.",
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
    "responses": {
        "200": {"description": "A SeldonMessage", "content": {"application/json": {"schema": {"type": "object"}}}}
    },
}
_BEHIND_INGRESS: Final = "/seldon/{namespace}/{graph}"


class SeldonExchange:
    """One call."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def encode(self, response: Response) -> HttpResponse:
        """The message that the graph answered."""
        status, body, content_type = graph_calls.answered(response)
        return HttpResponse(status, body, content_type)


class SeldonHttp:
    """The protocol's routes and its errors."""

    name = "seldon_http"
    title = "Seldon Core 1"

    def routes(self) -> Sequence[Route]:
        """Every path of the protocol."""
        routes: list[Route] = []
        for prefix in ("", _BEHIND_INGRESS):
            for version in ("v1.0", "v0.1"):
                api = f"{prefix}/api/{version}"
                routes += [
                    InferRoute("POST", f"{api}/predictions", predict, "Ask the Seldon graph", _MESSAGE),
                    InferRoute("POST", f"{api}/feedback", feedback, "Tell the Seldon graph a reward", _MESSAGE),
                ]
            routes.append(CallRoute("GET", f"{prefix}/api/v1.0/metadata", metadata, "What the Seldon graph is"))
        routes.append(CallRoute("GET", "/api/v1.0/metadata/{unit}", unit_metadata, "What a unit's model is"))
        return routes

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        """A SeldonMessage with a status, as Seldon's wrapper writes it; beside it `error`, as all protocols here."""
        if isinstance(error, Unauthenticated):
            return HttpResponse(http_status(error), error_json(error), headers=error_headers(error))
        reason = "MICROSERVICE_BAD_DATA" if isinstance(error, InvalidInput) else "MICROSERVICE_INTERNAL_ERROR"
        body = {"error": error.message, "status": {"status": 1, "info": error.message, "code": -1, "reason": reason}}
        return HttpResponse(http_status(error), orjson.dumps(body), headers=error_headers(error))


def predict(http: HttpRequest, door: Door) -> SeldonExchange:
    """The call in `http`. Raises: InvalidInput, TooLarge, Unsupported, NotFound."""
    return _call(http, door, {})


def feedback(http: HttpRequest, door: Door) -> SeldonExchange:
    """A reward. Raises: as `predict`."""
    return _call(http, door, {graph_calls.OPERATION: graph_calls.FEEDBACK})


def _call(http: HttpRequest, door: Door, parameters: dict[str, Parameter]) -> SeldonExchange:
    body = bytes(decompress(http.body, http.header(b"content-encoding"), http.limits.decompressed_bytes))
    if not body:
        raise InvalidInput("the body is empty; a SeldonMessage belongs there")
    name = _name(http, door)
    inputs = graph_calls.body_inputs(body, graph_calls.propagated_raw(http.headers, door.signature(name)))
    request = Request(name, inputs, parameters=parameters, timings=Timings(http.received))
    return SeldonExchange(request)


def _name(http: HttpRequest, door: Door) -> str:
    names = [name for name in door.models() if _is_seldon(door, name)]
    wanted = http.match.get("graph")
    if wanted is not None:
        if wanted not in names:
            raise NotFound(f"there is no Seldon graph '{wanted}'; there are {', '.join(names[:10]) or 'none'}")
        return wanted
    if len(names) != 1:
        raise NotFound(
            f"this path asks the only Seldon graph of a server; this one has {', '.join(names[:10]) or 'none'}"
            + ("; ask /seldon/NAMESPACE/NAME/api/v1.0/predictions" if names else "")
        )
    return names[0]


def _is_seldon(door: Door, name: str) -> bool:
    try:
        return graph_calls.level_of(door.signature(name)) == graph_calls.MESSAGES
    except PenstockError:  # it went a moment ago
        return False


async def metadata(http: HttpRequest, door: Door) -> HttpResponse:
    """The graph's name and what it takes. Raises: NotFound."""
    name = _name(http, door)
    document = {
        "name": name,
        "models": {each: _model(door, each) for each in door.models() if each != name},
        "graphinputs": [{"messagetype": "tensor"}],
        "graphoutputs": [{"messagetype": "tensor"}],
    }
    return HttpResponse(200, orjson.dumps(document))


async def unit_metadata(http: HttpRequest, door: Door) -> HttpResponse:
    """What a unit's model takes and gives. Raises: NotFound, NotReady."""
    return HttpResponse(200, orjson.dumps(_model(door, http.match["unit"])))


def _model(door: Door, name: str) -> Mapping[str, object]:
    description = door.describe(name)
    signature = description.signature
    inputs, outputs = (
        [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]
        for specs in (signature.inputs, signature.outputs)
    )
    return {
        "name": name, "platform": signature.platform, "versions": [str(number) for number in description.versions],
        "inputs": inputs, "outputs": outputs,
    }  # fmt: skip


plug = SeldonHttp()
