"""A closed loop of gRPC calls, to set beside the HTTP one. The client (grpcio) costs more than most servers' own work:
its figures are a lower bound of what the server can do."""

from __future__ import annotations

import asyncio
import time
from importlib import resources

import numpy as np

from penstock.cli.load import Tally
from penstock.client.options import Tls
from penstock.client.tensors import Ask
from penstock.core.errors import NotReady
from penstock.core.protobuf import Schema
from penstock.core.tensor import to_wire
from penstock.ledger.grpc import METHOD, credentials


def prepare(ask: Ask) -> bytes:
    """The ModelInferRequest of `ask`, whose inputs are arrays and whose datatypes are all known; with raw contents."""
    schema = Schema(resources.files("penstock.protocols.v2_grpc").joinpath("v2.binpb").read_bytes())
    tensor = schema.message("inference.ModelInferRequest.InferInputTensor")
    arrays = {name: np.asarray(value) for name, value in ask.inputs.items()}
    request = schema.message("inference.ModelInferRequest")(
        model_name=ask.model,
        model_version=ask.version,
        inputs=[
            tensor(name=name, datatype=ask.datatypes[name], shape=list(array.shape)) for name, array in arrays.items()
        ],
        raw_input_contents=[bytes(to_wire(array, ask.datatypes[name])) for name, array in arrays.items()],
    )
    made: bytes = request.SerializeToString()
    return made


async def run(
    address: str, request: bytes, connections: int, duration_s: float, api_key: str | None, tls: Tls | None
) -> Tally:
    """What `connections` clients, each with a channel of its own, saw in `duration_s`.

    Args:
        tls: None is without TLS.

    Raises:
        NotReady: nothing answers at `address`.
    """
    import grpc.aio

    tally = Tally()
    secure = credentials(tls) if tls else None
    metadata = [("authorization", f"Bearer {api_key}")] if api_key else []

    async def client(stop_at: float) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own; channels share one otherwise
        if secure is None:
            channel = grpc.aio.insecure_channel(address, options)
        else:
            channel = grpc.aio.secure_channel(address, secure, options)
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
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(client(begun + duration_s))
    except ExceptionGroup as several:  # all for the same reason
        raise several.exceptions[0] from several
    tally.seconds = time.perf_counter() - begun
    return tally
