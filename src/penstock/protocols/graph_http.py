"""Graphs over HTTP: `POST /v1/graphs/{graph}` with the body that the graph passes on, feedback, and what was learned.

KServe's graphs answer at `POST /` too, where their clients expect them, as long as a server has one of them only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from penstock.core import graph_calls
from penstock.core.compression import ACCEPTED, decompress
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, NotFound, PenstockError, Unsupported
from penstock.core.http_status import error_headers, http_status
from penstock.core.json_body import error_json, read_object
from penstock.core.json_rows import columns_of_rows, inputs_of_columns
from penstock.core.json_tensor import json_of_array
from penstock.core.messages import Request, Response, Timings
from penstock.core.servable import Signature
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, InferRoute, Route

_ANY: Final[Mapping[str, object]] = {"content": {"application/json": {"schema": {}}}}
_ASK: Final[Mapping[str, object]] = {
    "description": "Graphs of bodies take any body and answer as their steps do. Graphs of tensors take `inputs`, a "
    "value for each input, or `instances`, rows of the only one, and answer with `outputs`.",
    "requestBody": {"required": True, **_ANY},
    "responses": {"200": {"description": "The graph's answer", **_ANY}},
}
_FEEDBACK: Final[Mapping[str, object]] = {
    "description": "The reward, from 0 to 1, of an answer whose `route` is given back.",
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "route": {"type": "string"},
                        "reward": {"type": "number"},
                        "rewards": {"type": "array"},
                    },
                }
            }
        },
    },
    "responses": {"200": {"description": "How many routers learned", **_ANY}},
}
_ROUTERS: Final[Mapping[str, object]] = {"responses": {"200": {"description": "What each router has learned", **_ANY}}}


@dataclass(slots=True)
class BodyExchange:
    """A call whose body goes through."""

    request: Request

    def encode(self, response: Response) -> HttpResponse:
        """Status and body as the graph says, and which way its routers went."""
        status, body, content_type = graph_calls.answered(response)
        return HttpResponse(status, body, content_type, headers=_route(response))


@dataclass(slots=True)
class TensorExchange:
    """A call of a graph of tensors."""

    request: Request

    def encode(self, response: Response) -> HttpResponse:
        """`{"outputs": …}`, with `route` where a router chose."""
        document: dict[str, object] = {"outputs": {n: json_of_array(array) for n, array in response.outputs.items()}}
        if graph_calls.ROUTE in response.parameters:
            document[graph_calls.ROUTE] = response.parameters[graph_calls.ROUTE]
        return HttpResponse(200, orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), headers=_route(response))


def _route(response: Response) -> tuple[tuple[str, str], ...]:
    route = response.parameters.get(graph_calls.ROUTE)
    return () if route is None else (("Penstock-Route", str(route)),)


class GraphHttp:
    """The protocol's routes and its errors."""

    name = "graph_http"
    title = "Graphs"

    def routes(self) -> Sequence[Route]:
        """Every path of the protocol."""
        graph = "/v1/graphs/{graph}"
        return [
            InferRoute("POST", graph, decode, "Ask a graph", _ASK),
            InferRoute("POST", "/", decode_only, "Ask the only KServe graph", _ASK),
            InferRoute("POST", f"{graph}/feedback", decode_feedback, "Tell a graph's routers a reward", _FEEDBACK),
            InferRoute("GET", f"{graph}/routers", decode_state, "What a graph's routers have learned", _ROUTERS),
            CallRoute("GET", "/v1/graphs", graph_names, "The graphs that answer"),
        ]

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        """`{"error": …}` with the status of `core.http_status`."""
        headers = error_headers(error)
        if isinstance(error, Unsupported) and b"content-encoding" in request.headers:
            headers += (("Accept-Encoding", ACCEPTED),)
        return HttpResponse(http_status(error), error_json(error), headers=headers)


def decode(http: HttpRequest, door: Door) -> BodyExchange | TensorExchange:
    """The call in `http`. Raises: InvalidInput, TooLarge, Unsupported, NotFound, NotReady."""
    return _decode(http, http.match["graph"], door)


def decode_only(http: HttpRequest, door: Door) -> BodyExchange | TensorExchange:
    """The call of the only KServe graph. Raises: as `decode`; NotFound when there is none, or are several."""
    names = [name for name in door.models() if _level(door, name) == graph_calls.BODIES]
    if len(names) != 1:
        raise NotFound(
            f"POST / asks the only KServe graph of a server; this one has {', '.join(names[:10]) or 'none'}"
            + ("; ask /v1/graphs/NAME" if names else "")
        )
    return _decode(http, names[0], door)


def decode_feedback(http: HttpRequest, door: Door) -> BodyExchange:
    """A reward. Raises: as `decode`."""
    return _operation(http, door, graph_calls.FEEDBACK)


def decode_state(http: HttpRequest, door: Door) -> BodyExchange:
    """A question for what was learned. Raises: as `decode`."""
    return _operation(http, door, graph_calls.STATE)


def _operation(http: HttpRequest, door: Door, operation: str) -> BodyExchange:
    name = http.match["graph"]
    _graph(name, door)
    return BodyExchange(
        Request(
            name,
            graph_calls.body_inputs(_body(http)),
            parameters={graph_calls.OPERATION: operation},
            timings=Timings(http.received),
        )
    )


def _decode(http: HttpRequest, name: str, door: Door) -> BodyExchange | TensorExchange:
    signature = _graph(name, door)
    if graph_calls.level_of(signature) != graph_calls.TENSORS:
        inputs = graph_calls.body_inputs(_body(http), graph_calls.propagated_raw(http.headers, signature))
        return BodyExchange(Request(name, inputs, timings=Timings(http.received)))
    body = read_object(_body(http))
    rows, columns = body.get("instances"), body.get("inputs")
    if (rows is None) == (columns is None):
        raise InvalidInput('the body needs either "inputs", a value for each input, or "instances", a list of rows')
    if rows is not None and not isinstance(rows, list):
        raise InvalidInput('"instances" must be a list of rows')
    inputs = (
        columns_of_rows(rows, signature.inputs) if rows is not None else inputs_of_columns(columns, signature.inputs)
    )
    return TensorExchange(Request(name, inputs, timings=Timings(http.received)))


def _body(http: HttpRequest) -> bytes:
    return bytes(decompress(http.body, http.header(b"content-encoding"), http.limits.decompressed_bytes))


def _graph(name: str, door: Door) -> Signature:
    signature = door.signature(name)
    if not graph_calls.level_of(signature):
        raise NotFound(f"'{name}' is a model, not a graph; ask /v2/models/{name}/infer")
    return signature


def _level(door: Door, name: str) -> str:
    try:
        return graph_calls.level_of(door.signature(name))
    except PenstockError:  # it went a moment ago
        return ""


async def graph_names(http: HttpRequest, door: Door) -> HttpResponse:
    """The list, each with what flows in it."""
    found = [{"name": name, "level": level} for name in door.models() if (level := _level(door, name))]
    return HttpResponse(200, orjson.dumps({"graphs": found}))


plug = GraphHttp()
