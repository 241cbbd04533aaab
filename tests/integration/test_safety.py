"""Who is let in, over whole servers: TLS, mutual TLS and API keys on both ports, and addresses that others can reach."""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

import penstock
from penstock.core.errors import NotReady, PenstockError, Unauthenticated

KEY = "a key that nobody guesses"
WRONG: tuple[Mapping[str, str], ...] = (
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": f"Bearer {KEY} "[:-2]},
    {"X-API-Key": ""},
)
SAME = """
import penstock

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def same(x):
    return {"y": x}
"""
X = np.arange(3, dtype="f4")

Start = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("model") / "small.py"
    file.write_text(SAME)
    return f"{file}:same"


@dataclass(frozen=True)
class Certificates:
    """PEM files of the server, of a client that its authority knows and of one that it does not, and the authorities."""

    folder: Path

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def tls(self, client: str | None) -> penstock.client.Tls:
        if client is None:
            return penstock.client.Tls(self.path("server-ca.pem"))
        return penstock.client.Tls(self.path("server-ca.pem"), self.path(f"{client}.pem"), self.path(f"{client}.key"))

    def triton(self, client: str | None) -> dict[str, Any]:
        own = {"private_key": self.path(f"{client}.key"), "certificate_chain": self.path(f"{client}.pem")}
        return {"ssl": True, "root_certificates": self.path("server-ca.pem"), **(own if client else {})}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authorities = {"server": trustme.CA(), "client": trustme.CA(), "stranger": trustme.CA()}
    for name, authority in authorities.items():
        authority.cert_pem.write_to_path(str(folder / f"{name}-ca.pem"))
        issued = authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
    return Certificates(folder)


@pytest.fixture(scope="module")
def guarded(shared_server: Start, model: str, certificates: Certificates) -> Any:
    """A server that asks for a client's certificate and for a key."""
    return shared_server(
        {"same": {"path": model, "workers": 1}},
        tls_cert=certificates.path("server.pem"),
        tls_key=certificates.path("server.key"),
        tls_client_ca=certificates.path("client-ca.pem"),
        api_key=KEY,
    )


def tensor(kind: Any) -> Any:
    made = kind.InferInput("x", list(X.shape), "FP32")
    made.set_data_from_numpy(X)
    return made


# TLS and keys together


def test_certificate_and_key_let_in_over_http(guarded: Any, certificates: Certificates) -> None:
    assert guarded.http.startswith("https://")
    with penstock.Client(guarded.http, tls=certificates.tls("client"), api_key=KEY) as client:
        np.testing.assert_array_equal(client.infer("same", {"x": X})["y"], X)


def test_client_of_triton_gets_in_over_http(guarded: Any, certificates: Certificates) -> None:
    context = certificates.tls("client").context()
    address = guarded.http.removeprefix("https://")
    with triton_http.InferenceServerClient(address, ssl=True, ssl_context_factory=lambda: context) as client:
        answer = client.infer("same", [tensor(triton_http)], headers={"Authorization": f"Bearer {KEY}"})
        np.testing.assert_array_equal(answer.as_numpy("y"), X)
        with pytest.raises(InferenceServerException, match="401"):
            client.infer("same", [tensor(triton_http)])


def test_client_of_triton_gets_in_over_grpc(guarded: Any, certificates: Certificates) -> None:
    with triton_grpc.InferenceServerClient(guarded.grpc, **certificates.triton("client")) as client:
        answer = client.infer("same", [tensor(triton_grpc)], headers={"authorization": f"Bearer {KEY}"})
        np.testing.assert_array_equal(answer.as_numpy("y"), X)
        for headers in ({}, {"authorization": "Bearer wrong"}):
            with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                client.infer("same", [tensor(triton_grpc)], headers=headers)


@pytest.mark.parametrize("client", [None, "stranger"])
def test_key_alone_does_not_let_in_where_a_certificate_is_asked_for(
    guarded: Any, certificates: Certificates, client: str | None
) -> None:
    with (
        penstock.Client(guarded.http, tls=certificates.tls(client), api_key=KEY, retries=0) as over_http,
        pytest.raises(PenstockError) as refused,
    ):
        over_http.live()
    assert not isinstance(refused.value, Unauthenticated), "it was spoken with"
    with (
        triton_grpc.InferenceServerClient(guarded.grpc, **certificates.triton(client)) as over_grpc,
        pytest.raises(InferenceServerException, match="UNAVAILABLE"),
    ):
        over_grpc.infer("same", [tensor(triton_grpc)], headers={"authorization": f"Bearer {KEY}"})


def test_certificate_alone_does_not_let_in_where_a_key_is_asked_for(guarded: Any, certificates: Certificates) -> None:
    with penstock.Client(guarded.http, tls=certificates.tls("client"), retries=0) as client:
        assert client.live()
        with pytest.raises(Unauthenticated):
            client.infer("same", {"x": X})


def test_nothing_is_said_without_tls_on_either_port(guarded: Any) -> None:
    parts = urlsplit(guarded.http)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        connection.request("GET", "/livez")
        connection.getresponse()
    connection.close()
    with triton_grpc.InferenceServerClient(guarded.grpc) as client, pytest.raises(InferenceServerException):
        client.is_server_live(client_timeout=5)


def test_server_of_another_authority_is_not_trusted_by_clients(guarded: Any, certificates: Certificates) -> None:
    tls = penstock.client.Tls(
        certificates.path("stranger-ca.pem"), certificates.path("client.pem"), certificates.path("client.key")
    )
    with penstock.Client(guarded.http, tls=tls, retries=0) as client, pytest.raises(NotReady, match="certificate"):
        client.live()


def test_old_tls_is_turned_away(guarded: Any, certificates: Certificates) -> None:
    context = certificates.tls("client").context()
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    parts = urlsplit(guarded.http)
    connection = http.client.HTTPSConnection(str(parts.hostname), parts.port, timeout=20, context=context)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connection.connect()


# Keys on every route and method. Two fronts: the second one has to ask too.


@pytest.fixture(scope="module")
def keyed(shared_server: Start, model: str) -> Any:
    return shared_server({"same": {"path": model, "workers": 1}}, api_key=KEY, fronts=2)


def ask(running: Any, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers (lower case) and body, on a connection of its own, which either front may get."""
    parts = urlsplit(running.http)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, dict(headers))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def routes(running: Any) -> Iterator[tuple[str, str]]:
    """Method and path of everything in the server's own document, with its placeholders filled in."""
    status, _, body = ask(running, "GET", "/openapi.json", {"Authorization": f"Bearer {KEY}"})
    assert status == 200
    for pattern, operations in json.loads(body)["paths"].items():
        for method in operations:
            yield method.upper(), re.sub(r"\{\w+\}", "same", pattern.replace("{version}", "1"))


PUBLIC = {"/", "/docs", "/health", "/livez", "/playground", "/readyz", "/v2/health/live", "/v2/health/ready"}


def test_every_route_but_health_and_the_page_needs_the_key(keyed: Any) -> None:
    asked = set(routes(keyed))
    assert len(asked) > 30 and {path for _, path in asked} >= PUBLIC
    for method, path in sorted(asked):
        for headers in WRONG:
            status, answered, body = ask(keyed, method, path, headers)
            if path in PUBLIC and method == "GET":
                assert status == 200, path
            else:
                assert (status, answered["www-authenticate"]) == (401, "Bearer"), (method, path, headers)
                # Anthropic's errors say that they are one, and of which request.
                assert {"error"} <= set(json.loads(body)) <= {"error", "request_id", "type"}
                assert "same" not in body.decode()
    with penstock.Client(keyed.http, api_key=KEY) as client:  # nothing was unloaded, changed or even run
        assert client.models() == ["same"]
        assert client.statistics("same")[0].success.count == 0
        assert client.infer("same", {"x": X})["y"].tolist() == X.tolist()


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_key_opens_every_route_that_only_reads(keyed: Any, header: str) -> None:
    headers = {header: f"Bearer {KEY}" if header == "Authorization" else KEY}
    for method, path in sorted(set(routes(keyed))):
        if method == "GET":
            # Shared memory with clients is not supported, and says so; so does a server about graphs that it has not.
            graph = path.startswith(("/seldon/", "/v1/graphs/same")) or path == "/api/v1.0/metadata"
            # This model is no language model, and nothing was uploaded.
            language = path.startswith(("/config/", "/v1/files/", "/v1/batches/", "/v1/responses/"))
            allowed = (404,) if graph else (400, 404) if language else (200, 501) if "sharedmemory" in path else (200,)
            assert ask(keyed, method, path, headers)[0] in allowed, path


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "//v2/models/same", "/V2/models/same", "/livez/", "/livez/../v2/models/same", "/v2/health/live/../../models/same",
     "/livez%2f..%2fv2/models/same", "/%2e/v2/models/same", "/v2;/models/same", "/livez?/v2/models/same"],
)  # fmt: skip
def test_no_spelling_of_a_path_gets_around_the_key(keyed: Any, path: str) -> None:
    status, _, body = ask(keyed, "GET", path, {})
    if path.startswith("/livez?"):
        assert status == 200 and b"same" not in body
    else:
        assert status in (400, 401)


def test_every_grpc_method_but_health_needs_the_key(keyed: Any) -> None:
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert len(methods) >= 18
    names = [(f"/inference.GRPCInferenceService/{method.name}", method.client_streaming) for method in methods]
    names += [
        (f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo", True) for version in ("v1", "v1alpha")
    ]
    names += [("/no.Such/Method", False)]
    for name, streaming in names:
        for headers in WRONG:
            metadata = [(key.lower(), value) for key, value in headers.items()]
            with grpc.insecure_channel(keyed.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
                if streaming:
                    list(channel.stream_stream(name)(iter([b""]), metadata=metadata, timeout=20))
                else:
                    channel.unary_unary(name)(b"", metadata=metadata, timeout=20)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, (name, headers)
    with grpc.insecure_channel(keyed.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        assert health.Check(request, timeout=20).status == health_pb2.HealthCheckResponse.SERVING
        assert next(health.Watch(request, timeout=20)).status == health_pb2.HealthCheckResponse.SERVING


def test_key_is_in_no_log(keyed: Any) -> None:
    ask(keyed, "GET", "/v2", {"Authorization": f"Bearer {KEY}"})
    ask(keyed, "GET", "/v2", {"Authorization": "Bearer the wrong one"})
    written = keyed.log.read_text() + "".join(keyed.lines)
    assert KEY not in written and "the wrong one" not in written


# Addresses that others can reach


def refused_to_start(model: str, *flags: str, environment: Mapping[str, str] | None = None) -> str:
    """What `penstock serve` says instead of starting."""
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli", "serve", model, "--http-port", "0", "--grpc-port", "0", *flags],
        env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2 and "serving" not in done.stdout and "Traceback" not in done.stderr
    return " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1.example.org"])
def test_address_that_others_can_reach_needs_a_key(model: str, host: str) -> None:
    says = refused_to_start(model, "--host", host)
    for part in (host, "flag --host", "api_key", "api_key_file", "allow_anonymous"):
        assert part in says


def test_empty_key_is_no_key(model: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# no key yet\n\n")
    for environment in ({"PENSTOCK_API_KEY": ""}, {"PENSTOCK_HOST": "0.0.0.0", "PENSTOCK_API_KEY": ""}):
        refused_to_start(model, "--host", "0.0.0.0", environment=environment)
    assert "holds no key" in refused_to_start(model, "--host", "0.0.0.0", "--api-key-file", str(tmp_path / "keys"))


def test_with_a_key_it_starts_and_asks_for_it(server: Start, model: str) -> None:
    running = server({"same": {"path": model, "workers": 1}}, host="0.0.0.0", api_key=KEY)
    running.http = running.http.replace("0.0.0.0", "127.0.0.1")
    assert ask(running, "GET", "/v2/models/same", {})[0] == 401
    assert ask(running, "GET", "/v2/models/same", {"Authorization": f"Bearer {KEY}"})[0] == 200


def test_allowed_to_be_anonymous_it_starts_without_one(server: Start, model: str) -> None:
    running = server({"same": {"path": model, "workers": 1}}, host="0.0.0.0", allow_anonymous=True)
    address = running.grpc.replace("0.0.0.0", "127.0.0.1")
    with triton_grpc.InferenceServerClient(address) as client:
        np.testing.assert_array_equal(client.infer("same", [tensor(triton_grpc)]).as_numpy("y"), X)


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key"])
def test_half_of_a_tls_pair_is_refused_and_never_served_in_the_clear(
    model: str, certificates: Certificates, missing: str
) -> None:
    files = {"tls_cert": certificates.path("server.pem"), "tls_key": certificates.path("server.key")}
    del files[missing]
    flags = [part for name, path in files.items() for part in (f"--{name.replace('_', '-')}", path)]
    says = refused_to_start(model, *flags)
    assert missing in says or f"--{missing.replace('_', '-')}" in says


def test_authority_of_clients_without_a_certificate_of_the_server_is_refused(
    model: str, certificates: Certificates
) -> None:
    assert "tls_cert" in refused_to_start(model, "--tls-client-ca", certificates.path("client-ca.pem")).replace(
        "-", "_"
    )
