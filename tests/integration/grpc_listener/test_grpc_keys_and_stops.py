"""Keys, TLS and addresses of the gRPC listener, and what its stopping does to calls."""

from __future__ import annotations

import queue
import socket
import subprocess
import time
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_serving import INFER, SECONDS, Serving, X, models, on_this_loop, raw_request, serving, tensor
from numpy_door import NumpyDoor
from tritonclient.utils import InferenceServerException

from penstock.core.errors import (
    InvalidInput,
)
from penstock.protocols.v2_grpc import plug
from penstock.runtime.listeners.grpc import GrpcListener, GrpcOptions


def test_every_method_but_health_needs_the_key() -> None:
    with serving(GrpcOptions(authorise=lambda value: value == "Bearer k")) as running:
        with grpc.insecure_channel(running.address) as channel:
            names = [f"/{plug.service}/{method.name}" for method in plug.methods()]
            names += ["/no.Such/Method", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
            for name in names:
                for metadata in ([], [("authorization", "Bearer wrong")]):
                    with pytest.raises(grpc.RpcError) as caught:
                        if "Stream" in name or "reflection" in name:
                            list(channel.stream_stream(name)(iter([b""]), metadata=metadata))
                        else:
                            channel.unary_unary(name)(b"", metadata=metadata)
                    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, name
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            assert list(reflection.ServerReflectionInfo(iter([request]), metadata=[("authorization", "Bearer k")]))
        with triton.InferenceServerClient(running.address) as client:
            for headers in ({"authorization": "Bearer k"}, {"x-api-key": "k"}):
                result = client.infer("double", [tensor(X)], headers=headers)
                np.testing.assert_array_equal(result.as_numpy("y"), X * 2)


def make_certificates(folder: Path) -> None:
    """A CA, and a server's and a client's certificate from it, for 127.0.0.1."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA", "-days", "2")
    for name in ("server", "client"):
        (folder / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext"),
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.mark.parametrize("mutual", [False, True])
def test_real_client_infers_over_tls(certificates: Path, mutual: bool) -> None:
    options = GrpcOptions(
        tls_cert=str(certificates / "server.pem"),
        tls_key=str(certificates / "server.key"),
        tls_client_ca=str(certificates / "ca.pem") if mutual else None,
    )
    root = str(certificates / "ca.pem")
    own = {
        "private_key": str(certificates / "client.key"),
        "certificate_chain": str(certificates / "client.pem"),
    }
    with serving(options) as running:
        with triton.InferenceServerClient(running.address, ssl=True, root_certificates=root, **own) as client:
            np.testing.assert_array_equal(client.infer("double", [tensor(X)]).as_numpy("y"), X * 2)
        with triton.InferenceServerClient(running.address, ssl=True, root_certificates=root) as client:
            if mutual:
                with pytest.raises(InferenceServerException):
                    client.infer("double", [tensor(X)], client_timeout=3)
            else:
                client.infer("double", [tensor(X)])
        with triton.InferenceServerClient(running.address) as client, pytest.raises(InferenceServerException):
            client.infer("double", [tensor(X)], client_timeout=3)


async def test_tls_files_that_cannot_be_used_are_named(certificates: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for cert, key, text in (
        (str(empty), str(certificates / "server.key"), "empty.pem"),
        (str(tmp_path / "no.pem"), str(certificates / "server.key"), "no.pem"),
        (str(certificates / "server.pem"), None, "both"),
    ):
        listener = GrpcListener(NumpyDoor({}), [plug], GrpcOptions(tls_cert=cert, tls_key=key))
        with pytest.raises(InvalidInput, match=text):
            await listener.start("127.0.0.1", 0)


async def test_port_in_use_is_an_error_and_never_shared() -> None:
    async with on_this_loop() as (_, address):
        second = GrpcListener(NumpyDoor({}), [plug])
        port = address.rpartition(":")[2]
        with pytest.raises(InvalidInput, match=rf"grpc_port = {port}: Address already in use"):
            await second.start("127.0.0.1", int(port))


async def test_only_the_given_address_is_bound() -> None:
    async with on_this_loop() as (_, address):
        port = int(address.rpartition(":")[2])
        with socket.socket() as other:
            other.bind(("127.0.0.2", port))  # fails when the listener holds the port on all addresses
            other.listen()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
async def test_address_of_the_sixth_internet_protocol_is_bound() -> None:
    listener = GrpcListener(NumpyDoor(models()), [plug])
    port = await listener.start("::1", 0)
    try:
        async with triton_aio.InferenceServerClient(f"[::1]:{port}") as client:
            assert await client.is_server_live()
    finally:
        await listener.stop(0.0)


# Stopping


def test_call_in_flight_is_answered_while_stopping_and_new_ones_are_refused(served: Serving) -> None:
    gated = served.door.served["gated"]
    own = [("grpc.use_local_subchannel_pool", 1)]  # or both channels would share one connection
    with grpc.insecure_channel(served.address) as channel, grpc.insecure_channel(served.address, own) as late:
        idle = channel.stream_stream(f"/{plug.service}/ModelStreamInfer")(iter(queue.Queue().get, None))
        call = channel.unary_unary(INFER).future(raw_request(X, "gated", id="kept"))
        served.until(lambda: gated.waiting == ["kept"])
        stopping = served.stop(grace_s=SECONDS)
        code, end = None, time.monotonic() + SECONDS
        while code is None:  # until the stop has begun, on the other thread, calls are answered
            assert time.monotonic() < end
            try:
                late.unary_unary(INFER)(raw_request(X), timeout=SECONDS)
            except grpc.RpcError as error:
                code = error.code()
        # grpcio itself ends what reaches it in the very moment of stopping with CANCELLED.
        assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert not stopping.done()
        served.call(lambda: gated.gate.set())
        assert call.result(SECONDS)
        stopping.result(SECONDS)
        with pytest.raises(grpc.RpcError) as caught:
            next(idle)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_call_that_outlasts_the_grace_is_cancelled(served: Serving) -> None:
    with grpc.insecure_channel(served.address) as channel:
        call = channel.unary_unary(INFER).future(raw_request(X, "gated", id="stuck"))
        served.until(lambda: served.door.served["gated"].waiting == ["stuck"])
        served.stop(grace_s=0.1).result(SECONDS)
        assert call.exception(SECONDS).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    served.until(lambda: served.door.served["gated"].cancelled == ["stuck"])


def test_binary_metadata_does_no_harm(served: Serving) -> None:
    with grpc.insecure_channel(served.address) as channel:
        assert channel.unary_unary(INFER)(raw_request(X), metadata=[("x-trace", "1"), ("x-data-bin", b"\0\xff")])
