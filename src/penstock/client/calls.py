"""Each thing that can be asked of a server, as a value: what to send and how to read the answer. No I/O."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, TypeVar
from urllib.parse import quote

import orjson

from penstock.client import tensors
from penstock.client.http1 import Reply
from penstock.client.retry import retry_after_s
from penstock.client.tensors import LENGTH_HEADER, Ask, Buffer, Result
from penstock.core import errors
from penstock.core.door import BatchTally, Statistics, Tally, VersionStatus
from penstock.core.errors import Internal, PenstockError
from penstock.core.messages import Parameter
from penstock.core.tensor import TensorSpec

T = TypeVar("T")
Json = dict[str, object]

ERROR_HEADER = "penstock-error"  # names the type of `core.errors`, which a status cannot
_MESSAGE_CHARS = 2_000

_BY_STATUS: dict[int, type[PenstockError]] = {
    400: errors.InvalidInput,
    401: errors.Unauthenticated,
    403: errors.PermissionDenied,
    404: errors.NotFound,
    405: errors.Unsupported,
    408: errors.DeadlineExceeded,
    409: errors.AlreadyExists,
    413: errors.TooLarge,
    415: errors.InvalidInput,
    422: errors.InvalidInput,
    429: errors.QuotaExceeded,
    431: errors.TooLarge,
    499: errors.Cancelled,
    501: errors.Unsupported,
    502: errors.NotReady,
    503: errors.Overloaded,
    504: errors.DeadlineExceeded,
}


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a server says of a model. A shape's -1 is any length."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request: what to send, and what to make of the answer."""

    method: str
    path: str
    read: Callable[[Reply], T]
    body: Iterable[Buffer] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = False  # asking twice is the same as asking once


def error_of(reply: Reply) -> PenstockError | None:
    """The error that an answer is, or None when it is none."""
    if reply.status < 300:
        return None
    message = _message(reply)
    after = retry_after_s(reply.headers.get("retry-after", ""), datetime.now(UTC))
    named = reply.headers.get(ERROR_HEADER)
    if named:
        return errors.rebuild(named, message, after)
    kind = _BY_STATUS.get(reply.status)
    if kind is None:
        kind = errors.InvalidInput if 400 <= reply.status < 500 else Internal
    return kind(message, retry_after_s=after)


def checked(reply: Reply) -> Reply:
    """The answer, when it is not an error. Raises: what `error_of` says."""
    error = error_of(reply)
    if error is not None:
        raise error
    return reply


def infer(ask: Ask, timeout_s: float | None, *, gzip: bool, timing: bool) -> Call[Result]:
    """One inference with binary tensors. Raises: InvalidInput."""
    size, parts = tensors.encode(ask, timeout_s)
    headers = {LENGTH_HEADER: str(size), "Content-Type": "application/octet-stream"}
    if gzip:
        import zlib

        squeeze = zlib.compressobj(1, wbits=31)
        parts = [b"".join((*(squeeze.compress(part) for part in parts), squeeze.flush()))]
        headers |= {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    if timing:
        headers["Penstock-Timing"] = "1"
    return Call("POST", f"{model_path(ask.model, ask.version)}/infer", _read_result, parts, headers)


def generate(model: str, inputs: Mapping[str, object], version: str, parameters: Mapping[str, Parameter]) -> Call[Json]:
    """One answer of the generate extension. Raises: InvalidInput."""
    return _json_call(f"{model_path(model, version)}/generate", _generate_body(inputs, parameters), _object)


def stream(model: str, inputs: Mapping[str, object], version: str, parameters: Mapping[str, Parameter]) -> Call[Json]:
    """A stream of answers of the generate extension; `read` is for an answer that is none. Raises: InvalidInput."""
    call = generate(model, inputs, version, parameters)
    headers = {**call.headers, "Accept": "text/event-stream"}
    return Call("POST", f"{model_path(model, version)}/generate_stream", _object, call.body, headers)


def live() -> Call[bool]:
    """Whether the server answers."""
    return Call("GET", "/v2/health/live", _claim, repeatable=True)


def ready(model: str, version: str) -> Call[bool]:
    """Whether the server, or one model, can answer requests."""
    if not model:
        return Call("GET", "/v2/health/ready", _claim, repeatable=True)
    return Call("GET", f"{model_path(model, version)}/ready", _model_claim, repeatable=True)


def server() -> Call[Json]:
    """The server's name, version and extensions."""
    return Call("GET", "/v2", _object, repeatable=True)


def metrics() -> Call[str]:
    """The server's metrics, as Prometheus text."""
    return Call("GET", "/metrics", _text, repeatable=True)


def metadata(model: str, version: str) -> Call[ModelMetadata]:
    """A model's inputs and outputs."""
    return Call("GET", model_path(model, version), _read_metadata, repeatable=True)


def config(model: str, version: str) -> Call[Json]:
    """A model's configuration."""
    return Call("GET", f"{model_path(model, version)}/config", _object, repeatable=True)


def statistics(model: str, version: str) -> Call[list[Statistics]]:
    """The figures of a model's versions, or of all models."""
    path = f"{model_path(model, version)}/stats" if model else "/v2/models/stats"
    return Call("GET", path, _read_statistics, repeatable=True)


def index(*, only_ready: bool) -> Call[list[VersionStatus]]:
    """Every version that the server knows of, or those that can answer."""
    call = _json_call("/v2/repository/index", {"ready": True} if only_ready else {}, _read_index)
    return Call(call.method, call.path, call.read, call.body, call.headers, repeatable=True)


def load(model: str, config: Mapping[str, object] | None, files: Mapping[str, bytes] | None) -> Call[None]:
    """Loads a model, or loads it anew. Raises: InvalidInput."""
    parameters: dict[str, object] = {}
    if config is not None:
        parameters["config"] = _dumps(config).decode()
    for path, data in (files or {}).items():
        parameters[f"file:{path}"] = base64.b64encode(data).decode()
    body: Json = {"parameters": parameters} if parameters else {}
    return _json_call(f"/v2/repository/models/{quote(model, safe='')}/load", body, _nothing)


def unload(model: str) -> Call[None]:
    """Unloads a model."""
    return _json_call(f"/v2/repository/models/{quote(model, safe='')}/unload", {}, _nothing)


def model_path(model: str, version: str) -> str:
    """The path of a model, or of one version or label of it. Raises: InvalidInput."""
    if not model:
        raise errors.InvalidInput("the model's name is empty")
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _json_call(path: str, body: Json, read: Callable[[Reply], T]) -> Call[T]:
    return Call("POST", path, read, (_dumps(body),), {"Content-Type": "application/json"})


def _generate_body(inputs: Mapping[str, object], parameters: Mapping[str, Parameter]) -> Json:
    body = {**inputs}
    if parameters:
        body["parameters"] = dict(parameters)
    return body


def _dumps(value: object) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY, default=_plain)
    except TypeError as error:
        raise errors.InvalidInput(f"cannot be sent as JSON: {error}") from None


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "tolist"):  # arrays that orjson cannot walk itself: text, or not in C order
        return value.tolist()
    raise TypeError(type(value).__name__)


def _message(reply: Reply) -> str:
    try:
        body = orjson.loads(reply.body)
        said = body.get("error", body.get("detail")) if isinstance(body, dict) else None
        text = said if isinstance(said, str) else orjson.dumps(said).decode() if said else ""
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # it reads deeper nesting than it writes
        text = bytes(reply.body[:_MESSAGE_CHARS]).decode(errors="replace").strip()
    return text[:_MESSAGE_CHARS] or f"the server answered with status {reply.status}"


def _text(reply: Reply) -> str:
    try:
        return bytes(checked(reply).body).decode()
    except UnicodeDecodeError as error:
        raise Internal(f"the server's answer is no text: {error}") from None


def _loads(reply: Reply) -> object:
    try:
        return orjson.loads(checked(reply).body)
    except orjson.JSONDecodeError as error:
        raise Internal(f"the server's answer cannot be read: {error}") from None


def _object(reply: Reply) -> Json:
    value = _loads(reply)
    if not isinstance(value, dict):
        raise Internal(f"the server's answer cannot be read: it is a {type(value).__name__}, not an object")
    return value


def _nothing(reply: Reply) -> None:
    checked(reply)


def _claim(reply: Reply) -> bool:
    if reply.status in (400, 503):  # Triton says 400, KServe 503
        return False
    body = checked(reply).body
    try:
        said = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError:
        return True
    return not (isinstance(said, dict) and False in (said.get("live"), said.get("ready")))


def _model_claim(reply: Reply) -> bool:
    return reply.status != 404 and _claim(reply)  # what the server does not know cannot answer, as over gRPC


def _read_result(reply: Reply) -> Result:
    headers = checked(reply).headers
    timing = headers.get("server-timing")
    return tensors.decode(reply.body, headers, tensors.server_timing(timing) if timing else {})


def _read_metadata(reply: Reply) -> ModelMetadata:
    body = _object(reply)
    try:
        sides = [
            tuple(
                TensorSpec(str(one["name"]), str(one["datatype"]), tuple(int(axis) for axis in one["shape"]))
                for one in body.get(side) or ()  # type: ignore[attr-defined]  # anything else is caught below
            )
            for side in ("inputs", "outputs")
        ]
        versions = tuple(str(version) for version in body.get("versions") or ())  # type: ignore[attr-defined]  # as above
        return ModelMetadata(str(body["name"]), versions, str(body.get("platform") or ""), *sides)
    except (KeyError, TypeError, ValueError) as error:
        raise Internal(f"the server's metadata cannot be read: {type(error).__name__}: {error}") from None


def _read_index(reply: Reply) -> list[VersionStatus]:
    body = _loads(reply)
    if not isinstance(body, list) or not all(isinstance(one, dict) and "name" in one for one in body):
        raise Internal("the server's index cannot be read")
    return [
        VersionStatus(
            str(one["name"]),
            str(one.get("version") or ""),
            str(one.get("state") or ""),
            str(one.get("reason") or ""),
        )
        for one in body
    ]


def _read_statistics(reply: Reply) -> list[Statistics]:
    body = _object(reply)
    try:
        return [_one_statistics(one) for one in body["model_stats"]]  # type: ignore[attr-defined]  # caught below
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Internal(f"the server's statistics cannot be read: {type(error).__name__}: {error}") from None


def _one_statistics(one: dict[str, object]) -> Statistics:
    parts = one.get("inference_stats") or {}
    batches = one.get("batch_stats") or []
    statistics = Statistics(
        name=str(one["name"]),
        version=str(one.get("version") or ""),
        last_inference_ms=_whole(one.get("last_inference")),
        inference_count=_whole(one.get("inference_count")),
        execution_count=_whole(one.get("execution_count")),
        in_flight=_whole(one.get("in_flight")),
        queued=_whole(one.get("queued")),
        executor=str(one.get("executor") or ""),
        workers=[dict(worker) for worker in one.get("workers") or []],  # type: ignore[attr-defined]  # caught as above
        batches={
            _whole(batch.get("batch_size")): BatchTally(
                *(_tally(batch.get(part)) for part in ("compute_input", "compute_infer", "compute_output"))
            )
            for batch in batches  # type: ignore[attr-defined]  # the caller catches what is no list
        },
    )
    for part in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        setattr(statistics, part, _tally(parts.get(part)))  # type: ignore[attr-defined]  # as above
    return statistics


def _tally(value: object) -> Tally:
    return Tally(_whole(value.get("count")), _whole(value.get("ns"))) if isinstance(value, dict) else Tally()


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | str) else 0
