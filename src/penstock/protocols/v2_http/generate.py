"""The generate extension: plain JSON in and out for models of texts, whole or as server-sent events.

Every top-level key that is an input's name is that input, `parameters` and all other keys are parameters. Outputs are
top-level keys of the answer; one element stands alone. `generate_text` answers for language models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from penstock.core.compression import decompress
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, PenstockError
from penstock.core.json_body import read_object
from penstock.core.json_tensor import array_of_value, texts_of_array
from penstock.core.messages import Parameter, Request, Response, Timings
from penstock.core.sample import sample_flat, sample_rows
from penstock.core.servable import Signature
from penstock.protocols import HttpRequest, HttpResponse, InferRoute, Route, StreamRoute
from penstock.protocols.v2_http import generate_text
from penstock.protocols.v2_http import request as infer
from penstock.protocols.v2_http.answer import InferExchange, compressed
from penstock.protocols.v2_http.models import PATHS
from penstock.protocols.v2_http.schema import GENERATE, GENERATE_STREAM, INFER_STREAM

_EVENTS: Final = "text/event-stream; charset=utf-8"
_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY


def routes() -> Sequence[Route]:
    """The routes of this module. `infer_stream` is MLServer's: V2 answers as events."""
    found: list[Route] = []
    for path in PATHS:
        found += [
            InferRoute(
                "POST",
                f"{path}/generate",
                decode,
                "Generate from plain JSON",
                GENERATE,
                example,
                generate_text.generate,
            ),
            StreamRoute(
                "POST",
                f"{path}/generate_stream",
                decode_stream,
                "Generate as a stream of events",
                GENERATE_STREAM,
                example,
                generate_text.generate_stream,
            ),
            StreamRoute(
                "POST",
                f"{path}/infer_stream",
                decode_infer_stream,
                "Inference as a stream of events",
                INFER_STREAM,
                infer.example,
            ),
        ]
    return found


def decode(http: HttpRequest, door: Door) -> GenerateExchange:
    """Raises: InvalidInput, TooLarge, Unsupported, NotFound, NotReady."""
    return GenerateExchange(_request(http, door), http.header(b"accept-encoding"))


def decode_stream(http: HttpRequest, door: Door) -> GenerateStream:
    """Raises: as `decode`."""
    return GenerateStream(_request(http, door))


def decode_infer_stream(http: HttpRequest, door: Door) -> InferStream:
    """Raises: as `request.decode`."""
    exchange = infer.decode(http, door)
    exchange.binary = False  # events are text
    if any(wish.binary for wish in exchange.wishes.values()):
        raise InvalidInput("a stream of events is text: ask for outputs without binary_data")
    return InferStream(exchange.request, exchange)


def example(signature: Signature) -> dict[str, object] | None:
    """A body that `decode` takes; None when it would be too long."""
    body: dict[str, object] = {}
    for spec in signature.inputs:
        if not spec.optional:
            values = sample_flat(spec)
            if values is None:
                return None
            body[spec.name] = values[0] if len(values) == 1 else sample_rows(spec)
    return body or None


@dataclass(slots=True)
class GenerateExchange:
    """One answer."""

    request: Request
    accept_encoding: str = ""

    def encode(self, response: Response) -> HttpResponse:
        """Raises: InvalidInput when an output has no JSON form."""
        answer = HttpResponse(200, orjson.dumps(_plain(self.request, response), option=_NUMPY))
        return compressed(answer, self.accept_encoding) if self.accept_encoding else answer


@dataclass(slots=True)
class GenerateStream:
    """Any number of answers. There is no last event: the stream's end is the end, and an error is an event."""

    request: Request
    content_type: str = _EVENTS

    def encode_item(self, response: Response) -> bytes:
        """One event. Raises: InvalidInput when an output has no JSON form."""
        return _event(orjson.dumps(_plain(self.request, response), option=_NUMPY))

    def encode_end(self) -> bytes:
        """Nothing."""
        return b""

    def encode_error(self, error: PenstockError) -> bytes:
        """The event of an error, after which nothing follows."""
        return _error(error)


@dataclass(slots=True)
class InferStream:
    """V2 answers in JSON, one event each."""

    request: Request
    exchange: InferExchange
    content_type: str = _EVENTS

    def encode_item(self, response: Response) -> bytes:
        """One event. Raises: InvalidInput when an output has no JSON form."""
        document, _ = self.exchange.document(response)
        return _event(orjson.dumps(document, option=_NUMPY))

    def encode_end(self) -> bytes:
        """Nothing."""
        return b""

    def encode_error(self, error: PenstockError) -> bytes:
        """The event of an error, after which nothing follows."""
        return _error(error)


def _error(error: PenstockError) -> bytes:
    """`error` is V2's; the type tells what a status and `Penstock-Error` would have: whether to ask again."""
    return _event(orjson.dumps({"error": error.message, "type": type(error).__name__}))


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data  # JSON of orjson holds no line break


def _request(http: HttpRequest, door: Door) -> Request:
    model, version = http.match["model"], http.match.get("version", "")
    signature = door.signature(model, version)
    body = decompress(http.body, http.header(b"content-encoding"), http.limits.decompressed_bytes)
    request = Request(model, {}, version, timings=Timings(http.received))
    specs = {spec.name: spec for spec in signature.inputs}
    parameters: dict[str, Parameter | None] = {}
    for key, value in read_object(body).items():
        if (spec := specs.get(key)) is not None:
            request.inputs[key] = array_of_value(value, spec)
        elif key == "id":
            request.id = _identity(value)
        elif key == "parameters" and isinstance(value, dict):
            for name, item in value.items():
                parameters[name] = _parameter(name, item)
        elif value is not None:
            parameters[key] = _parameter(key, value)
    infer.take_parameters(request, parameters)
    return request


def _identity(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput("id must be text")
    return value


def _parameter(name: str, value: object) -> Parameter | None:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidInput(f"'{name[:80]}' is no input of the model; a parameter is text, a number, true or false")


def _plain(request: Request, response: Response) -> dict[str, object]:
    answer: dict[str, object] = {"model_name": response.model, "model_version": response.version}
    if identity := response.id or request.id:
        answer["id"] = identity
    for name, array in response.outputs.items():
        values = texts_of_array(name, array) if array.dtype.kind == "O" else array.ravel().tolist()
        answer[name] = values[0] if len(values) == 1 else values
    return answer
