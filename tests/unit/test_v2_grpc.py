from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from numpy_door import NumpyDoor, NumpyModel, numpy_model
from tritonclient.grpc import model_config_pb2, service_pb2

from penstock.core.errors import InvalidInput, NotFound, PenstockError, TooLarge, Unsupported
from penstock.core.messages import NO_DEADLINE, Response
from penstock.core.protobuf import length_prefix, take_field
from penstock.core.tensor import TensorSpec
from penstock.protocols import GrpcCall, GrpcInfer, GrpcRequest, GrpcStream, Limits
from penstock.protocols.v2_grpc import plug

METHODS = {method.name: method for method in plug.methods()}
OTHERS = {"ModelConfig", "ModelInput", "ModelOutput", "ModelVersionPolicy", "ModelInstanceGroup"} | {
    "ModelDynamicBatching",
    "ModelParameter",
    "ModelTransactionPolicy",
}


def echo(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    return {"y": inputs["x"]}


def counts(inputs: Any, parameters: Any) -> Iterator[dict[str, np.ndarray]]:
    for number in range(int(inputs["n"].ravel()[0])):
        yield {"i": np.array([[number]], dtype="i4")}


def door_of(**models: NumpyModel) -> NumpyDoor:
    return NumpyDoor(
        {
            "echo": numpy_model({"x": "f4[n, k]"}, {"y": "f4[n, k]"}, predict=echo),
            "counter": numpy_model({"n": "i4[n, 1]"}, {"i": "i4[n, 1]"}, answer=counts),
        }
        | models
    )


def message(array: np.ndarray | None = None, **fields: Any) -> Any:
    """A raw request of the real client's message type."""
    request = service_pb2.ModelInferRequest(**{"model_name": "echo"} | fields)
    if array is not None:
        request.inputs.add(name="x", datatype="FP32", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def wire(request: Any, *, deadline: float = NO_DEADLINE, limits: Limits | None = None, **metadata: str) -> GrpcRequest:
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return GrpcRequest(data, metadata, deadline, 100.0, limits or Limits())


def decode(request: Any, door: NumpyDoor | None = None, **options: Any) -> Any:
    method = METHODS["ModelInfer"]
    assert isinstance(method, GrpcInfer)
    return method.decode(wire(request, **options), door or door_of())


def decode_stream(request: Any, door: NumpyDoor | None = None, **options: Any) -> Any:
    method = METHODS["ModelStreamInfer"]
    assert isinstance(method, GrpcStream)
    return method.decode(wire(request, **options), door or door_of())


async def call(name: str, request: Any, door: NumpyDoor) -> Any:
    method = METHODS[name]
    assert isinstance(method, GrpcCall)
    data = await method.handle(wire(request), door)
    return getattr(service_pb2, f"{name}Response").FromString(data)


# The wire format


def shape_of(field: descriptor_pb2.FieldDescriptorProto) -> tuple[object, ...]:
    oneof = field.oneof_index if field.HasField("oneof_index") else None
    return (field.name, field.number, field.type, field.type_name, field.label, oneof is not None)


def messages(file: descriptor_pb2.FileDescriptorProto) -> dict[str, dict[str, tuple[object, ...]]]:
    found: dict[str, dict[str, tuple[object, ...]]] = {}

    def walk(types: Any, prefix: str) -> None:
        for kind in types:
            found[prefix + kind.name] = {field.name: shape_of(field) for field in kind.field}
            walk(kind.nested_type, f"{prefix}{kind.name}.")

    walk(file.message_type, "")
    return found


def proto_of(descriptor: Any) -> descriptor_pb2.FileDescriptorProto:
    proto = descriptor_pb2.FileDescriptorProto()
    descriptor.CopyToProto(proto)
    return proto


OURS = descriptor_pb2.FileDescriptorProto.FromString(plug.file_descriptors()[-1])
THEIRS = proto_of(service_pb2.DESCRIPTOR)
THEIR_CONFIG = proto_of(model_config_pb2.DESCRIPTOR)


def test_every_message_of_the_client_has_the_same_fields_numbers_and_types_here() -> None:
    ours = messages(OURS)
    for name, fields in messages(THEIRS).items():
        assert ours[name] == fields, name


def test_configuration_messages_are_a_part_of_the_clients_with_the_same_numbers() -> None:
    theirs = messages(THEIR_CONFIG)
    extra = {name: fields for name, fields in messages(OURS).items() if name not in messages(THEIRS)}
    assert {name.partition(".")[0] for name in extra} == OTHERS
    for name, fields in extra.items():
        for field, shape in fields.items():
            assert theirs[name][field] == shape, f"{name}.{field}"


def test_enumerations_have_the_clients_numbers() -> None:
    def numbers(enum: Any) -> dict[str, int]:
        return {value.name: value.number for value in enum.value}

    def kind(file: Any) -> Any:
        return next(m for m in file.message_type if m.name == "ModelInstanceGroup").enum_type[0]

    ours = next(enum for enum in OURS.enum_type if enum.name == "DataType")
    theirs = next(enum for enum in THEIR_CONFIG.enum_type if enum.name == "DataType")
    assert numbers(ours) == numbers(theirs)
    assert numbers(kind(OURS)) == numbers(kind(THEIR_CONFIG))


def test_every_method_of_the_client_is_offered_with_the_same_messages() -> None:
    def described(file: Any) -> list[tuple[object, ...]]:
        return sorted(
            (m.name, m.input_type, m.output_type, m.client_streaming, m.server_streaming)
            for m in file.service[0].method
        )

    assert described(OURS) == described(THEIRS)
    assert set(METHODS) == {method.name for method in OURS.service[0].method}


def test_file_descriptors_load_in_their_order_into_an_empty_pool() -> None:
    pool = descriptor_pool.DescriptorPool()
    for file in plug.file_descriptors():
        pool.AddSerializedFile(file)
    assert pool.FindServiceByName(plug.service).full_name == plug.service


def test_compiled_descriptors_are_those_of_the_proto() -> None:
    pytest.importorskip("grpc_tools")
    script = Path(__file__).parents[2] / "tools" / "protos.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_loading_the_plug_imports_neither_protobuf_nor_grpc() -> None:
    code = (
        "import sys; from penstock.protocols.v2_grpc import plug; import penstock.runtime.listeners.grpc; "
        "sys.exit('google.protobuf' in sys.modules or 'grpc' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Requests


def test_raw_input_is_decoded_without_losing_names_ids_or_versions() -> None:
    values = np.arange(6, dtype="f4").reshape(2, 3)
    request = decode(message(values, id="7", model_version="1"), deadline=123.0).request
    assert (request.model, request.version, request.id, request.deadline) == ("echo", "1", "7", 123.0)
    assert request.timings.received == 100.0
    np.testing.assert_array_equal(request.inputs["x"], values)


def test_large_raw_input_is_a_view_of_the_message_or_aligned_copy_of_it() -> None:
    values = np.random.default_rng(1).random((40, 1000), dtype="f4")
    array = decode(message(values)).request.inputs["x"]
    np.testing.assert_array_equal(array, values)
    assert array.flags.aligned


def test_typed_contents_are_decoded() -> None:
    request = message()
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1.5, 2.5])
    assert decode(request).request.inputs["x"].tolist() == [[1.5, 2.5]]


def test_priority_is_read_as_unsigned_or_signed_and_does_not_reach_the_model() -> None:
    request = message(np.zeros((1, 1), "f4"))
    request.parameters["priority"].uint64_param = 1
    request.parameters["temperature"].double_param = 0.5
    decoded = decode(request).request
    assert (decoded.priority, decoded.parameters) == (1, {"temperature": 0.5})
    request.parameters["priority"].int64_param = 2
    assert decode(request).request.priority == 2


def test_timeout_parameter_is_microseconds_and_never_extends_the_deadline() -> None:
    request = message(np.zeros((1, 1), "f4"))
    request.parameters["timeout"].int64_param = 2_000_000
    assert decode(request).request.deadline == pytest.approx(102.0)
    assert decode(request, deadline=101.0).request.deadline == 101.0
    request.parameters["timeout"].int64_param = 0
    assert decode(request).request.deadline == NO_DEADLINE


def test_reserved_parameters_do_not_reach_the_model_and_sequence_parameters_do() -> None:
    request = message(np.zeros((1, 1), "f4"))
    request.parameters["binary_data_output"].bool_param = True
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.parameters["sequence_id"].string_param = "s"
    assert decode(request).request.parameters == {"sequence_id": "s"}


def with_parameter(key: str, field: str, value: Any) -> Any:
    request = message(np.zeros((1, 1), "f4"))
    setattr(request.parameters[key], field, value)
    return request


def with_input(datatype: str, shape: list[int], raw: bytes | None = None, **contents: list[Any]) -> Any:
    request = message()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return request


def twice() -> Any:
    request = message(np.zeros((1, 1), "f4"))
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(b"\0" * 4)
    return request


def output_twice() -> Any:
    request = message(np.zeros((1, 1), "f4"))
    request.outputs.add(name="y")
    request.outputs.add(name="y")
    return request


def no_value() -> Any:
    request = message(np.zeros((1, 1), "f4"))
    request.parameters["empty"].SetInParent()
    return request


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (b"\xff\xff", "cannot be read"),
        (with_input("FP32", [1, 1], b"\0" * 4, fp32_contents=[1.0]), "typed contents beside raw"),
        (with_input("FP16", [1], bytes_contents=[b"xx"]), "FP16 has no typed contents"),
        (with_input("BF16", [1]), "BF16 has no typed contents"),
        (with_input("FP31", [1], b"1234"), "unknown datatype"),
        (with_input("FP31", [1]), "unknown datatype"),
        (with_input("FP32", [2], b"1234"), "4 bytes of data"),
        (with_input("FP32", [-1], b"1234"), "negative axis"),
        (with_input("FP32", [-1], fp32_contents=[1.0]), "negative axis"),
        (with_input("FP32", [2], fp32_contents=[1.0]), "has 1 values"),
        (with_input("FP32", [1], fp64_contents=[1.0]), "belong in fp32_contents"),
        (with_input("FP32", [0, 1 << 62, 1 << 62], b""), "impossible shape"),
        (with_input("FP32", [0, 1 << 62, 1 << 62]), "impossible shape"),
        (with_input("FP32", [1] * 65, b"1234"), "65 axes"),
        (with_input("FP32", [1] * 65, fp32_contents=[1.0]), "65 axes"),
        (with_input("INT8", [1], int_contents=[300]), "INT8 cannot hold"),
        (with_input("UINT8", [1], uint_contents=[256]), "UINT8 cannot hold"),
        (with_input("BYTES", [1 << 60], b""), "BYTES data holds 0"),
        (with_input("BYTES", [1], b"\xff\xff\xff\xff"), "claims"),
        (twice(), "there twice"),
        (output_twice(), "asked for twice"),
        (no_value(), "has no value"),
        (with_parameter("priority", "string_param", "1"), "whole number"),
        (with_parameter("priority", "int64_param", -1), "whole number"),
        (with_parameter("timeout", "bool_param", True), "whole number"),
        (with_parameter("triton_enable_empty_final_response", "int64_param", 1), "must be a boolean"),
    ],
)
def test_malformed_request_blames_the_caller(request_: Any, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        decode(request_)


def test_as_many_raw_contents_as_inputs_are_needed() -> None:
    request = message(np.zeros((1, 1), "f4"))
    request.raw_input_contents.append(b"")
    with pytest.raises(InvalidInput, match="2 items for 1 inputs"):
        decode(request)


@pytest.mark.parametrize("typed", [True, False])
def test_tensor_beyond_the_limit_is_too_large(typed: bool) -> None:
    request = with_input("FP32", [100], fp32_contents=[0.0] * 100) if typed else with_input("FP32", [100], b"\0" * 400)
    with pytest.raises(TooLarge, match="400 bytes"):
        decode(request, limits=Limits(tensor_bytes=399))


def test_unknown_model_and_version_are_not_found() -> None:
    for fields in ({"model_name": "nobody"}, {"model_version": "9"}):
        with pytest.raises(NotFound):
            decode(message(np.zeros((1, 1), "f4"), **fields))


def test_shared_memory_is_refused_for_inputs_and_outputs() -> None:
    request = message()
    request.inputs.add(name="x", datatype="FP32", shape=[1]).parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported, match="shared memory"):
        decode(request)
    request = message(np.zeros((1, 1), "f4"))
    request.outputs.add(name="y").parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported, match="shared memory"):
        decode(request)


def test_model_that_streams_refuses_the_unary_call() -> None:
    request = service_pb2.ModelInferRequest(model_name="counter")
    with pytest.raises(Unsupported, match="ModelStreamInfer"):
        decode(request)


# Answers


def test_answer_is_raw_in_the_order_of_the_outputs() -> None:
    outputs = {"b": np.array([[1, 2]], "i4"), "a": np.array([[b"text", b""]], dtype=object)}
    exchange = decode(message(np.zeros((1, 1), "f4"), id="42"))
    answer = service_pb2.ModelInferResponse.FromString(exchange.encode(Response("echo", "1", outputs)))
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("b", "INT32", [1, 2]),
        ("a", "BYTES", [1, 2]),
    ]
    assert list(answer.raw_output_contents) == [b"\1\0\0\0\2\0\0\0", b"\4\0\0\0text\0\0\0\0"]
    assert (answer.model_name, answer.model_version, answer.id) == ("echo", "1", "42")


def test_answers_of_a_bf16_output_take_two_bytes_each() -> None:
    door = door_of(half=numpy_model({"x": "f4[n, k]"}, {"y": "bf2[n, k]"}, predict=echo))
    exchange = decode(message(np.zeros((1, 1), "f4"), model_name="half"), door)
    answer = service_pb2.ModelInferResponse.FromString(
        exchange.encode(Response("half", "1", {"y": np.array([[1.0]], "f4")}))
    )
    assert (answer.outputs[0].datatype, answer.raw_output_contents[0]) == ("BF16", b"\x80\x3f")


def test_response_parameters_keep_their_types() -> None:
    values: dict[str, bool | int | float | str] = {"b": True, "i": -1, "u": 2**63, "f": 0.5, "s": "x"}
    exchange = decode(message(np.zeros((1, 1), "f4")))
    answer = service_pb2.ModelInferResponse.FromString(exchange.encode(Response("echo", "1", {}, parameters=values)))
    assert {key: value.WhichOneof("parameter_choice") for key, value in answer.parameters.items()} == {
        "b": "bool_param", "i": "int64_param", "u": "uint64_param", "f": "double_param", "s": "string_param",
    }  # fmt: skip


def test_classification_gives_text_with_labels() -> None:
    spec = TensorSpec("y", "FP32", (-1, -1), labels=("cat", "dog", "cow"))
    door = door_of(pets=numpy_model({"x": "f4[n, k]"}, {"y": spec}, predict=echo))
    request = message(np.zeros((1, 3), "f4"), model_name="pets")
    request.outputs.add(name="y").parameters["classification"].int64_param = 2
    exchange = decode(request, door)
    answer = service_pb2.ModelInferResponse.FromString(
        exchange.encode(Response("pets", "1", {"y": np.array([[0.1, 0.2, 0.7]], "f4")}))
    )
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [1, 2])
    assert answer.raw_output_contents[0] == b"\x0e\0\0\x000.700000:2:cow\x0e\0\0\x000.200000:1:dog"


# Streams


def items(data: bytes | None) -> Any:
    assert data is not None
    return service_pb2.ModelStreamInferResponse.FromString(data)


def test_one_answer_of_a_plain_model_is_marked_as_final() -> None:
    exchange = decode_stream(message(np.zeros((1, 1), "f4"), id="3"))
    answer = items(exchange.encode_item(Response("echo", "1", {"y": np.zeros((300, 300), "f4")})))
    assert answer.error_message == "" and answer.infer_response.id == "3"
    assert answer.infer_response.parameters["triton_final_response"].bool_param is True
    assert len(answer.infer_response.raw_output_contents[0]) == 360_000
    assert exchange.encode_end() is None


@pytest.mark.parametrize("asked", [True, False])
def test_empty_final_answer_of_a_stream_is_sent_only_when_asked_for(asked: bool) -> None:
    request = service_pb2.ModelInferRequest(model_name="counter", id="3")
    request.inputs.add(name="n", datatype="INT32", shape=[1, 1]).contents.int_contents.append(2)
    if asked:
        request.parameters["triton_enable_empty_final_response"].bool_param = True
    exchange = decode_stream(request)
    item = items(exchange.encode_item(Response("counter", "1", {"i": np.zeros((1, 1), "i4")}))).infer_response
    assert item.parameters["triton_final_response"].bool_param is False
    end = exchange.encode_end()
    if not asked:
        assert end is None
        return
    last = items(end).infer_response
    assert (last.id, last.model_name, len(last.outputs)) == ("3", "counter", 0)
    assert last.parameters["triton_final_response"].bool_param is True


def test_stream_error_is_a_message_with_the_requests_id_or_a_status_when_asked_for() -> None:
    request = message(np.zeros((1, 1), "f4"), id="3")
    answer = items(decode_stream(request).encode_error(InvalidInput("no")))
    assert (answer.error_message, answer.infer_response.id) == ("no", "3")
    assert decode_stream(request, triton_grpc_error="true").encode_error(InvalidInput("no")) is None


def test_refused_stream_message_is_answered_with_its_id() -> None:
    method = METHODS["ModelStreamInfer"]
    assert isinstance(method, GrpcStream)
    answer = items(method.encode_error(NotFound("who?"), wire(message(id="9", model_name="nobody"))))
    assert (answer.error_message, answer.infer_response.id) == ("who?", "9")
    assert items(method.encode_error(InvalidInput("bad"), wire(b"\xff"))).error_message == "bad"
    assert method.encode_error(NotFound("who?"), wire(b"\xff", triton_grpc_error="true")) is None


# The other methods


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


# Taking a field out of a message without parsing it


def test_taken_field_and_the_rest_make_up_the_message() -> None:
    request = message(np.ones((2, 2), "f4"), id="5", model_version="3")
    request.raw_input_contents.append(b"more")
    taken = take_field(request.SerializeToString(), 7)
    assert taken is not None
    rest, contents = taken
    assert [bytes(item) for item in contents] == list(request.raw_input_contents)
    request.ClearField("raw_input_contents")
    assert service_pb2.ModelInferRequest.FromString(rest) == request


@pytest.mark.parametrize("data", [b"\x3a\x05abc", b"\x3a", b"\x80" * 12, b"\x3b", b"\x09abc", b"\x08" * 9000])
def test_unusual_bytes_are_left_to_the_parser(data: bytes) -> None:
    assert take_field(data, 7) is None


@pytest.mark.parametrize("length", [0, 1, 127, 128, 1 << 20, 1 << 35])
def test_length_prefix_is_read_back(length: int) -> None:
    prefix = length_prefix(17, length)
    assert prefix[:2] == b"\x8a\x01"
    value = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(prefix[2:]))
    assert value == length
