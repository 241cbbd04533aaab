"""A closed loop of gRPC calls, to set beside the HTTP one. The client (grpcio) costs more than most servers' own work:
its figures are a lower bound of what the server can do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from penstock.cli.load import Tally
from penstock.core.errors import NotReady
from penstock.core.protobuf import Schema
from penstock.core.tensor import Array, TensorSpec, to_wire

METHOD = "/inference.GRPCInferenceService/ModelInfer"


def prepare(model: str, values: Mapping[str, Array], known: Sequence[TensorSpec]) -> bytes:
    """A ModelInferRequest for `NAME` or `NAME@VERSION`, with raw contents."""
    schema = Schema(resources.files("penstock.protocols.v2_grpc").joinpath("v2.binpb").read_bytes())
    tensor = schema.message("inference.ModelInferRequest.InferInputTensor")
    datatypes = {spec.name: spec.datatype for spec in known}
    name, _, version = model.partition("@")
    request = schema.message("inference.ModelInferRequest")(
        model_name=name,
        model_version=version,
        inputs=[tensor(name=key, datatype=datatypes[key], shape=list(array.shape)) for key, array in values.items()],
        raw_input_contents=[bytes(to_wire(array, datatypes[key])) for key, array in values.items()],
    )
    made: bytes = request.SerializeToString()
    return made


async def run(
    address: str, request: bytes, connections: int, duration_s: float, api_key: str | None, ca_file: str | None
) -> Tally:
    """What `connections` clients, each with a channel of its own, saw in `duration_s`.

    Args:
        ca_file: None is without TLS; "" trusts the system's authorities.

    Raises:
        NotReady: nothing answers at `address`.
    """
    import grpc.aio

    tally = Tally()
    roots = Path(ca_file).read_bytes() if ca_file else None  # noqa: ASYNC240  # once, before anything is measured
    metadata = [("authorization", f"Bearer {api_key}")] if api_key else []

    async def client(stop_at: float) -> None:
        # Channels with equal options share one connection; a number of its own keeps them apart.
        options = [("grpc.channel_id", id(asyncio.current_task()))]
        if ca_file is None:
            channel = grpc.aio.insecure_channel(address, options)
        else:
            channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots), options)
        async with channel:
            call = channel.unary_unary(METHOD)
            while (sent_at := time.perf_counter()) < stop_at:
                try:
                    await call(request, metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    tally.fail(error.code().name)
                    if error.code() is grpc.StatusCode.UNAVAILABLE and not tally.latencies_s:
                        raise NotReady(f"nothing answers at {address}: {error.details()}") from error
                else:
                    tally.latencies_s.append(time.perf_counter() - sent_at)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(client(begun + duration_s))
    tally.seconds = time.perf_counter() - begun
    return tally
