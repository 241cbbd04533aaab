"""The methods of the real gRPC client beside inference, health and reflection."""

from __future__ import annotations

from functools import partial

import grpc
import grpc.aio
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_serving import SECONDS, Serving, X, tensor
from tritonclient.utils import InferenceServerException

from penstock.protocols.v2_grpc import plug


def test_client_reads_health_metadata_configuration_and_statistics(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("double")
    assert client.is_model_ready("nobody") is False
    assert client.get_server_metadata().name == "penstock"
    metadata = client.get_model_metadata("double", as_json=True)
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "-1"]}]
    config = client.get_model_config("counter").config
    assert config.model_transaction_policy.decoupled and config.max_batch_size == 8
    client.infer("double", [tensor(X)])
    (statistics,) = client.get_inference_statistics("double").model_stats
    assert (statistics.inference_count, statistics.inference_stats.success.count) == (1, 1)


def test_client_loads_unloads_and_lists(served: Serving, client: triton.InferenceServerClient) -> None:
    client.unload_model("double")
    assert not client.is_model_ready("double")
    with pytest.raises(InferenceServerException) as caught:
        client.infer("double", [tensor(X)])
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert "double" not in {
        model.name for model in client.get_model_repository_index().models if model.state == "READY"
    }
    client.load_model("double", config='{"max_batch_size": 2}', files={"file:1/model.npy": b"data"})
    assert served.door.loads == [("double", {"max_batch_size": 2}, {"1/model.npy": b"data"})]
    assert client.is_model_ready("double")


def test_client_changes_trace_and_log_settings(client: triton.InferenceServerClient) -> None:
    settings = client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "7"})
    assert list(settings.settings["trace_rate"].value) == ["7"]
    assert list(client.get_trace_settings().settings["trace_level"].value) == ["TIMESTAMPS"]
    client.update_log_settings({"log_verbose_level": 1, "log_info": False})
    assert client.get_log_settings().settings["log_verbose_level"].uint32_param == 1


def test_client_is_told_that_there_is_no_shared_memory(client: triton.InferenceServerClient) -> None:
    for call in (
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
        partial(client.register_system_shared_memory, "r", "/k", 8),
        client.unregister_system_shared_memory,
    ):
        with pytest.raises(InferenceServerException, match="send tensors") as caught:
            call()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


# Health and reflection


def status_name(status: int) -> str:
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def test_health_checks_the_server_and_each_model(served: Serving) -> None:
    with grpc.insecure_channel(served.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def check(service: str) -> str:
            return status_name(health.Check(health_pb2.HealthCheckRequest(service=service)).status)

        assert [check(name) for name in ("", plug.service, "double")] == ["SERVING"] * 3
        served.door.served["double"].ready = False
        assert [check(name) for name in ("", "double", "broken")] == ["NOT_SERVING", "NOT_SERVING", "SERVING"]
        with pytest.raises(grpc.RpcError) as caught:
            check("nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_watch_tells_every_change_and_the_end(served: Serving) -> None:
    with grpc.insecure_channel(served.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="double"), timeout=SECONDS)
        assert status_name(next(watch).status) == "SERVING"
        served.door.become("double", ready=False)
        assert status_name(next(watch).status) == "NOT_SERVING"
        served.door.become("double", ready=True)
        assert status_name(next(watch).status) == "SERVING"
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=SECONDS)
        assert status_name(next(unknown).status) == "SERVICE_UNKNOWN"
        stopping = served.stop(grace_s=SECONDS)
        assert [status_name(item.status) for item in watch] == ["NOT_SERVING"]
        stopping.result(SECONDS)


def test_reflection_lists_and_describes_the_services(served: Serving) -> None:
    with grpc.insecure_channel(served.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {plug.service, "grpc.health.v1.Health"} <= set(database.get_services())
        file = database.FindFileContainingSymbol(plug.service)
        assert "ModelInferRequest" in {message.name for message in file.message_type}
        assert database.FindFileContainingSymbol("grpc.health.v1.Health").package == "grpc.health.v1"


def test_reflection_answers_under_its_newer_name_too(served: Serving) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(served.address) as channel:
        call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        (answer,) = call(iter([request.SerializeToString()]))
    names = reflection_pb2.ServerReflectionResponse.FromString(answer).list_services_response.service
    assert plug.service in {service.name for service in names}
