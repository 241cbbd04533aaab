"""Copies of gRPC calls for a shadow. The caller never waits for them. Imports grpc.

Unary calls only: of a stream nobody knows how long it is and which answer belongs to which message."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio
import orjson

from penstock.core.errors import InvalidInput
from penstock.core.grpc_status import http_status_of_code
from penstock.core.protobuf import MessageClass, Schema, length_prefix, parse
from penstock.fleet.router.balancer import Balancer
from penstock.fleet.router.grpc_channels import Channels
from penstock.fleet.router.grpc_outcome import Fault, Pairs, fault_of
from penstock.fleet.router.grpc_peek import V2
from penstock.fleet.router.hooks import Answer, Hooks, Mirror
from penstock.fleet.router.lanes import Service, Upstream
from penstock.fleet.routes import Endpoint
from penstock.protocols import v2_grpc

_MOST_REQUEST_BYTES = 256 << 10  # as the HTTP front copies
_MOST_ANSWER_BYTES = (1 << 20) + 1  # one byte more than is compared tells that it was longer
_TYPED = (
    "bool_contents", "int_contents", "int64_contents", "uint_contents", "uint64_contents", "fp32_contents",
    "fp64_contents", "bytes_contents",
)  # fmt: skip

Copy = asyncio.Task[Answer]
Outcome = TypeVar("Outcome")


class Copies:
    """The copies of one router that are under way. For one loop."""

    def __init__(self, balancer: Balancer, hooks: Hooks, channels: Channels) -> None:
        self._balancer = balancer
        self._hooks = hooks
        self._channels = channels
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, service: Service, method: str, message: bytes, timeout_s: float, metadata: Pairs) -> Copy | None:
        """Sends a copy where the endpoint wants one; None where it does not, or no replica of the shadow is free."""
        endpoint, mirror = service.endpoint, self._hooks.mirror
        if endpoint.shadow is None or mirror is None:
            return None
        if len(message) > _MOST_REQUEST_BYTES:
            mirror.skip(endpoint, "too_large")
            return None
        if not mirror.wants(endpoint, random.random()):
            return None
        lane = service.by_revision.get(endpoint.shadow.revision)
        upstream = None if lane is None else self._balancer.acquire_in(lane, self._balancer.clock())
        if upstream is None:
            mirror.skip(endpoint, "behind")
            return None
        return self._own(self._ask(upstream, method, message, timeout_s, metadata))

    def compare(self, copy: Copy, endpoint: Endpoint, method: str, live: Answer | None) -> None:
        """The caller has its answer; None: it got none, so there is nothing to compare."""
        mirror = self._hooks.mirror
        if live is None or mirror is None:
            copy.cancel()
        else:
            self._own(_compare(mirror, copy, endpoint, method, live))

    async def close(self) -> None:
        """Ends the copies that are under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _own(self, work: Coroutine[Any, Any, Outcome]) -> asyncio.Task[Outcome]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask(self, upstream: Upstream, method: str, message: bytes, timeout_s: float, metadata: Pairs) -> Answer:
        balancer, lane = self._balancer, upstream.lane
        link = None
        began = balancer.clock()
        try:
            if not upstream.grpc:
                return Answer(lane.revision, 0, error="the shadow's replica does not listen for gRPC")
            link = self._channels.take(upstream)
            body: bytes = await link.unary(method)(message, timeout=timeout_s, metadata=metadata)
            status = 200
        except grpc.aio.AioRpcError as error:
            if fault_of(error) in (Fault.UNREACHED, Fault.LOST):
                balancer.failed(upstream)
                lane.tally.add(0, balancer.clock() - began)
                return Answer(lane.revision, 0, error=error.details() or "")
            body, status = (error.details() or "").encode(), http_status_of_code(error.code().name)
        finally:
            balancer.release(upstream, balancer.clock())
            if link is not None:
                self._channels.release(link)
        latency_s = balancer.clock() - began
        balancer.succeeded(upstream)
        lane.tally.add(status, latency_s)
        return Answer(lane.revision, status, body, latency_s)


async def _compare(mirror: Mirror, copy: Copy, endpoint: Endpoint, method: str, live: Answer) -> None:
    shadow = await copy
    if method == V2 + "ModelInfer":
        live, shadow = await asyncio.to_thread(lambda: (_readable(live), _readable(shadow)))
    mirror.compare(endpoint, live, shadow)


def _readable(answer: Answer) -> Answer:
    """A ModelInferResponse as V2 has it over HTTP, JSON with binary tensors, which the mirror compares by value."""
    if answer.status != 200 or len(answer.body) >= _MOST_ANSWER_BYTES:
        return answer
    try:
        response = parse(_response_kind(), answer.body)
    except InvalidInput:
        return answer
    raw = list(response.raw_output_contents)
    outputs: list[dict[str, object]] = []
    for place, tensor in enumerate(response.outputs):
        output: dict[str, object] = {
            "name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "parameters": {},
        }  # fmt: skip
        if place < len(raw):
            output["parameters"] = {"binary_data_size": len(raw[place])}
        else:
            typed = next((values for name in _TYPED if (values := getattr(tensor.contents, name))), ())
            output["data"] = [one.hex() if isinstance(one, bytes) else one for one in typed]
        outputs.append(output)
    head = orjson.dumps({"outputs": outputs})
    body = head + b"".join(raw)
    return Answer(answer.revision, answer.status, body, answer.latency_s, "application/json", len(head))


@functools.cache
def _response_kind() -> MessageClass:
    files = v2_grpc.plug.file_descriptors()
    return Schema(b"".join(length_prefix(1, len(file)) + file for file in files)).message(
        "inference.ModelInferResponse"
    )
