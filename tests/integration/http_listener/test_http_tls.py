"""TLS and mutual TLS on the HTTP listener, and errors that name the file at fault."""

from __future__ import annotations

import asyncio
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from http_harness import Client, get, infer, post, serving, stream, until

from penstock.core.errors import InvalidInput
from penstock.tls import tls_context


@dataclass
class Files:
    """Certificates on disk, and the authorities that made them."""

    cert: str
    key: str
    client_ca: str
    other_key: str
    server_ca: trustme.CA
    client: trustme.CA


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    server_ca, client_ca = trustme.CA(), trustme.CA()
    leaf, other = server_ca.issue_cert("127.0.0.1"), server_ca.issue_cert("127.0.0.1")
    paths = {name: str(folder / name) for name in ("cert.pem", "key.pem", "client_ca.pem", "other_key.pem")}
    for number, blob in enumerate(leaf.cert_chain_pems):
        blob.write_to_path(paths["cert.pem"], append=number > 0)
    leaf.private_key_pem.write_to_path(paths["key.pem"])
    other.private_key_pem.write_to_path(paths["other_key.pem"])
    client_ca.cert_pem.write_to_path(paths["client_ca.pem"])
    return Files(
        paths["cert.pem"], paths["key.pem"], paths["client_ca.pem"], paths["other_key.pem"], server_ca, client_ca
    )


def client_context(files: Files, *, certificate_from: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    files.server_ca.configure_trust(context)
    if certificate_from is not None:
        certificate_from.issue_cert("client@example.org").configure_cert(context)
    return context


async def test_requests_bodies_and_streams_over_tls(files: Files) -> None:
    async with serving(ssl=tls_context(files.cert, files.key)) as it:
        client = await it.connect(ssl=client_context(files), server_hostname="127.0.0.1")
        assert (await client.ask(infer([1, 2]))).json["y"] == [2, 4]
        assert len((await client.ask(stream([1, 2]))).chunks) == 3
        body = os.urandom(3_000_000)
        sending = asyncio.ensure_future(client.send(post("/upload", body)))
        assert (await client.answer()).json[0] == 3_000_000
        await sending
        assert len((await client.ask(get("/zeros/3000000"))).body) == 3_000_000
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
        await client.close()


async def test_a_tls_client_that_leaves_takes_its_request_with_it(files: Files) -> None:
    async with serving(ssl=tls_context(files.cert, files.key)) as it:
        client = await it.connect(ssl=client_context(files), server_hostname="127.0.0.1")
        it.door.gate.clear()
        await client.send(infer([1], id="a"))
        await until(lambda: "a" in it.door.waiting)
        client.writer.close()
        await until(lambda: it.door.cancelled == ["a"])


async def test_a_refused_body_over_tls_is_answered(files: Files) -> None:
    async with serving(ssl=tls_context(files.cert, files.key), max_body_bytes=1000) as it:
        client = await it.connect(ssl=client_context(files), server_hostname="127.0.0.1")
        answer = await client.ask(post("/upload", b"").replace(b"Content-Length: 0", b"Content-Length: 2000"))
        assert answer.status == 413


async def test_plain_clients_and_old_tls_are_turned_away_and_others_served(files: Files) -> None:
    async with serving(ssl=tls_context(files.cert, files.key)) as it:
        plain = await it.connect()
        await plain.send(get("/health"))
        assert b"HTTP/1.1 200" not in await plain.closed()
        old = client_context(files)
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await it.connect(ssl=old, server_hostname="127.0.0.1")
        client = await it.connect(ssl=client_context(files), server_hostname="127.0.0.1")
        assert (await client.ask(get("/health"))).status == 200


async def ask_health(client: Client) -> int:
    """With TLS 1.3 a client learns that its certificate is refused only when it reads."""
    return (await client.ask(get("/health"))).status


async def test_mutual_tls_lets_in_only_certificates_of_its_authority(files: Files) -> None:
    async with serving(ssl=tls_context(files.cert, files.key, files.client_ca)) as it:
        good = await it.connect(ssl=client_context(files, certificate_from=files.client), server_hostname="127.0.0.1")
        assert await ask_health(good) == 200
        for certificate_from in (None, files.server_ca, trustme.CA()):
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                context = client_context(files, certificate_from=certificate_from)
                await ask_health(await it.connect(ssl=context, server_hostname="127.0.0.1"))
        assert await ask_health(good) == 200
        assert it.listener.counters.responses[2] == 2


def test_errors_name_the_file_at_fault(files: Files, tmp_path: Path) -> None:
    garbage, missing = tmp_path / "garbage.pem", tmp_path / "missing.pem"
    garbage.write_text("this is no certificate")
    for arguments, at_fault in (
        ((str(missing), files.key), str(missing)),
        ((files.cert, str(missing)), str(missing)),
        ((files.cert, files.key, str(missing)), str(missing)),
        ((str(garbage), files.key), str(garbage)),
        ((files.cert, str(garbage)), str(garbage)),
        ((files.cert, files.key, str(garbage)), str(garbage)),
        ((files.cert, files.other_key), f"{files.other_key} does not belong to certificate {files.cert}"),
        ((str(tmp_path), files.key), str(tmp_path)),
    ):
        with pytest.raises(InvalidInput) as caught:
            tls_context(*arguments)
        assert at_fault in str(caught.value), arguments


def test_an_encrypted_key_is_named_and_nobody_is_asked_for_a_password(files: Files, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(files.key).read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(InvalidInput, match=r"encrypted\.pem is encrypted"):
        tls_context(files.cert, str(encrypted))
