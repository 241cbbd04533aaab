"""The methods of V2 over gRPC beside inference, against a door in memory."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2
from v2_grpc_messages import METHODS, call, door_of

from penstock.core.errors import InvalidInput, PenstockError, Unsupported
from penstock.protocols import GrpcCall


async def test_health_and_metadata_tell_what_the_door_tells() -> None:
    door = door_of()
    assert (await call("ServerLive", b"", door)).live
    assert (await call("ServerReady", b"", door)).ready
    assert (await call("ModelReady", service_pb2.ModelReadyRequest(name="echo"), door)).ready
    assert not (await call("ModelReady", service_pb2.ModelReadyRequest(name="nobody"), door)).ready
    door.served["echo"].ready = False
    assert not (await call("ModelReady", service_pb2.ModelReadyRequest(name="echo"), door)).ready
    assert not (await call("ServerReady", b"", door)).ready


async def test_server_metadata_claims_no_shared_memory() -> None:
    metadata = await call("ServerMetadata", b"", door_of())
    assert metadata.name == "penstock" and metadata.version
    assert "classification" in metadata.extensions
    assert not any("shared_memory" in extension for extension in metadata.extensions)


async def test_model_metadata_has_the_batch_axis_and_the_configuration_has_not() -> None:
    door = door_of()
    metadata = await call("ModelMetadata", service_pb2.ModelMetadataRequest(name="counter"), door)
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("counter", ["1"], "numpy")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("n", "INT32", [-1, 1])]
    config = (await call("ModelConfig", service_pb2.ModelConfigRequest(name="counter"), door)).config
    assert (config.max_batch_size, list(config.input[0].dims), config.input[0].data_type) == (8, [1], 8)
    assert config.model_transaction_policy.decoupled
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000


async def test_statistics_are_those_of_the_door() -> None:
    door = door_of()
    statistics = door.served["echo"].statistics
    statistics.inference_count, statistics.last_inference_ms = 5, 1234
    statistics.success.add(0.5, 5)
    answer = await call("ModelStatistics", service_pb2.ModelStatisticsRequest(name="echo"), door)
    (model,) = answer.model_stats
    assert (model.name, model.inference_count, model.last_inference) == ("echo", 5, 1234)
    assert (model.inference_stats.success.count, model.inference_stats.success.ns) == (5, 500_000_000)
    assert model.inference_stats.HasField("cache_hit") and model.inference_stats.cache_hit.count == 0
    assert len((await call("ModelStatistics", b"", door)).model_stats) == 2


async def test_index_lists_only_ready_models_when_asked() -> None:
    door = door_of()
    door.served["echo"].ready = False
    everything = (await call("RepositoryIndex", b"", door)).models
    assert {(m.name, m.state) for m in everything} == {("echo", "UNAVAILABLE"), ("counter", "READY")}
    ready = (await call("RepositoryIndex", service_pb2.RepositoryIndexRequest(ready=True), door)).models
    assert [m.name for m in ready] == ["counter"]


async def test_load_passes_configuration_and_files() -> None:
    door = door_of()
    request = service_pb2.RepositoryModelLoadRequest(model_name="echo")
    request.parameters["config"].string_param = '{"max_batch_size": 4}'
    request.parameters["file:1/model.onnx"].bytes_param = b"onnx"
    await call("RepositoryModelLoad", request, door)
    assert door.loads == [("echo", {"max_batch_size": 4}, {"1/model.onnx": b"onnx"})]
    await call("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name="echo"), door)
    assert not door.served["echo"].ready


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"config": "{"}, "not valid JSON"),
        ({"config": "[" * 100_000}, "the config parameter"),
        ({"config": "[]"}, "Expected `object`"),
        ({"file:x": "b"}, "need a config"),
        ({"other": "b"}, "unknown load parameter"),
    ],
)
async def test_load_refuses_parameters_without_meaning(parameters: dict[str, str], text: str) -> None:
    request = service_pb2.RepositoryModelLoadRequest(model_name="echo")
    for key, value in parameters.items():
        request.parameters[key].string_param = value
    with pytest.raises(InvalidInput, match=text):
        await call("RepositoryModelLoad", request, door_of())


async def test_trace_and_log_settings_are_updated_and_answered_in_full() -> None:
    door = door_of()
    request = service_pb2.TraceSettingRequest()
    request.settings["trace_level"].value.extend(["TIMESTAMPS", "TENSORS"])
    request.settings["trace_rate"].value.append("5")
    settings = (await call("TraceSetting", request, door)).settings
    assert {key: list(value.value) for key, value in settings.items()} == {
        "trace_level": ["TIMESTAMPS", "TENSORS"],
        "trace_rate": ["5"],
    }
    cleared = service_pb2.TraceSettingRequest()
    cleared.settings["trace_rate"].SetInParent()
    await call("TraceSetting", cleared, door)
    assert door.trace["trace_rate"] is None
    log = service_pb2.LogSettingsRequest()
    log.settings["log_info"].bool_param = False
    log.settings["log_verbose_level"].uint32_param = 2
    answered = (await call("LogSettings", log, door)).settings
    assert answered["log_info"].bool_param is False
    assert (answered["log_verbose_level"].uint32_param, answered["log_format"].string_param) == (2, "default")


@pytest.mark.parametrize("kind", ["System", "Cuda"])
@pytest.mark.parametrize("verb", ["Status", "Register", "Unregister"])
async def test_shared_memory_is_unsupported_with_advice(kind: str, verb: str) -> None:
    with pytest.raises(Unsupported, match="send tensors in the request"):
        await call(f"{kind}SharedMemory{verb}", b"", door_of())


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if isinstance(method, GrpcCall)])
async def test_no_method_lets_another_error_out(name: str) -> None:
    with pytest.raises(PenstockError):
        await call(name, b"\xff\xff\xff", door_of())
