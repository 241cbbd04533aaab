"""Open Inference Protocol V2 over gRPC, with Triton's extensions. `v2.proto` is the wire format, `v2.binpb` its
compiled form (see tools/protos.py).

Source: https://github.com/kserve/open-inference-protocol and the extensions that Triton's clients use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING

from penstock.protocols import GrpcCall, GrpcInfer, GrpcStream

if TYPE_CHECKING:
    from penstock.core.protobuf import Schema


class V2Grpc:
    """The service. Protobuf is imported when a listener asks for its methods, not before."""

    name = "v2_grpc"
    service = "inference.GRPCInferenceService"

    @cached_property
    def _schema(self) -> Schema:
        from penstock.core.protobuf import Schema

        return Schema(resources.files(__name__).joinpath("v2.binpb").read_bytes())

    def methods(self) -> Sequence[GrpcInfer | GrpcStream | GrpcCall]:
        from penstock.protocols.v2_grpc.calls import calls
        from penstock.protocols.v2_grpc.infer import Inference

        inference = Inference(self._schema)
        return (
            GrpcInfer("ModelInfer", inference.decode),
            GrpcStream("ModelStreamInfer", inference.decode_stream, inference.stream_error),
            *calls(self._schema),
        )

    def file_descriptors(self) -> Sequence[bytes]:
        return self._schema.files


plug = V2Grpc()
