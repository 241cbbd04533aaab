"""The V2 gRPC methods beside inference: health, metadata, configuration, statistics, repository, settings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec

from penstock.core.door import BatchTally, Door, Statistics, Tally
from penstock.core.errors import InvalidInput, NotFound, Unsupported
from penstock.core.json_body import read_json
from penstock.core.messages import Parameter
from penstock.core.model_config import model_config
from penstock.core.protobuf import Schema, parse
from penstock.protocols import GrpcCall, GrpcRequest

EXTENSIONS = (
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)

_CONFIG: Final = msgspec.json.Decoder(dict[str, object])

Answer = Callable[[Any, Any, GrpcRequest, Door], Awaitable[None]]


def calls(schema: Schema) -> Sequence[GrpcCall]:
    """The methods, ready to be called. An answer fills the response message it is given."""
    answers: dict[str, Answer] = {
        "ServerLive": _server_live,
        "ServerReady": _server_ready,
        "ModelReady": _model_ready,
        "ServerMetadata": _server_metadata,
        "ModelMetadata": _model_metadata,
        "ModelConfig": _model_config,
        "ModelStatistics": _model_statistics,
        "RepositoryIndex": _repository_index,
        "RepositoryModelLoad": _load,
        "RepositoryModelUnload": _unload,
        "TraceSetting": _trace_setting,
        "LogSettings": _log_settings,
    }
    for kind in ("System", "Cuda"):
        for verb in ("Status", "Register", "Unregister"):
            answers[f"{kind}SharedMemory{verb}"] = _no_shared_memory
    return [_call(schema, name, answer) for name, answer in answers.items()]


def _call(schema: Schema, name: str, answer: Answer) -> GrpcCall:
    request_kind = schema.message(f"inference.{name}Request")
    response_kind = schema.message(f"inference.{name}Response")

    async def handle(request: GrpcRequest, door: Door) -> bytes:
        response = response_kind()
        await answer(parse(request_kind, request.data), response, request, door)
        data: bytes = response.SerializeToString()
        return data

    return GrpcCall(name, handle)


async def _server_live(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    response.live = door.live()


async def _server_ready(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    response.ready = door.ready()


async def _model_ready(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    # Clients poll this while a model is being loaded: an unknown one is not ready, and no error.
    try:
        response.ready = door.model_ready(message.name, message.version)
    except NotFound:
        response.ready = False


async def _server_metadata(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    response.name = "penstock"
    try:
        response.version = version("penstock")
    except PackageNotFoundError:
        response.version = "0"
    response.extensions.extend(EXTENSIONS)


async def _model_metadata(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    description = door.describe(message.name, message.version)
    response.name = description.name
    response.versions.extend(str(number) for number in description.versions)
    response.platform = description.signature.platform
    for spec in description.signature.inputs:
        response.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    for spec in description.signature.outputs:
        response.outputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)


async def _model_config(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    from google.protobuf import json_format

    config = model_config(door.describe(message.name, message.version))
    json_format.ParseDict(config, response.config, ignore_unknown_fields=True)


async def _model_statistics(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    for statistics in await door.statistics(message.name, message.version):
        _put_statistics(response.model_stats.add(), statistics)


def _put_statistics(out: Any, statistics: Statistics) -> None:
    out.name, out.version = statistics.name, statistics.version
    out.last_inference = statistics.last_inference_ms
    out.inference_count, out.execution_count = statistics.inference_count, statistics.execution_count
    for field in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        _put_tally(getattr(out.inference_stats, field), getattr(statistics, field))
    # Present and zero: there is no response cache.
    out.inference_stats.cache_hit.SetInParent()
    out.inference_stats.cache_miss.SetInParent()
    for size, tally in sorted(statistics.batches.items()):
        _put_batch(out.batch_stats.add(batch_size=size), tally)


def _put_batch(out: Any, tally: BatchTally) -> None:
    _put_tally(out.compute_input, tally.compute_input)
    _put_tally(out.compute_infer, tally.compute_infer)
    _put_tally(out.compute_output, tally.compute_output)


def _put_tally(out: Any, tally: Tally) -> None:
    out.SetInParent()
    out.count, out.ns = tally.count, tally.ns


async def _repository_index(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    for status in await door.index():
        if not message.ready or status.state == "READY":
            response.models.add(name=status.name, version=status.version, state=status.state, reason=status.reason)


async def _load(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    config: dict[str, object] | None = None
    files: dict[str, bytes] = {}
    for key, value in message.parameters.items():
        if key == "config":
            config = _config(value.string_param)
        elif key.startswith("file:"):
            files[key.removeprefix("file:")] = value.bytes_param
        else:
            raise InvalidInput(f"unknown load parameter '{key}': there are config and file:PATH")
    if files and config is None:
        raise InvalidInput("file:PATH parameters need a config parameter beside them")
    await door.load(message.model_name, config, files or None)


def _config(text: str) -> dict[str, object]:
    return read_json(text.encode(), _CONFIG, "the config parameter")


async def _unload(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    await door.unload(message.model_name)


async def _trace_setting(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    update: dict[str, object] = {}
    for key, setting in message.settings.items():
        values = list(setting.value)
        # An empty list clears; trace_level is the one setting that is a list.
        update[key] = None if not values else values if key == "trace_level" or len(values) > 1 else values[0]
    for key, value in (await door.trace_settings(message.model_name, update or None)).items():
        texts = value if isinstance(value, (list, tuple)) else [value]
        response.settings[key].value.extend("" if text is None else str(text) for text in texts)


async def _log_settings(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    update: dict[str, Parameter] = {}
    for key, setting in message.settings.items():
        field = setting.WhichOneof("parameter_choice")
        if field is None:
            raise InvalidInput(f"log setting '{key}' has no value")
        update[key] = getattr(setting, field)
    for key, value in (await door.log_settings(update or None)).items():
        out = response.settings[key]
        if isinstance(value, bool):
            out.bool_param = value
        elif isinstance(value, int):
            out.uint32_param = value
        else:
            out.string_param = str(value)


async def _no_shared_memory(message: Any, response: Any, request: GrpcRequest, door: Door) -> None:
    raise Unsupported("this server does not share memory with its clients: send tensors in the request")
