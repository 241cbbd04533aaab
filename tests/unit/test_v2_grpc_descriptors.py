"""Our V2 messages against the real client's descriptors: the same fields, numbers, types and methods."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from tritonclient.grpc import model_config_pb2, service_pb2
from v2_grpc_messages import METHODS, OTHERS

from penstock.protocols.v2_grpc import plug


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
