"""Both clients over TLS, with certificates that openssl makes."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from v2_peer import V2Server

from penstock.client import Tls
from penstock.core.errors import NotReady, PenstockError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`server` and `client`, each its own authority: NAME.pem and NAME.key."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
    return folder


@pytest.fixture
def secure(certificates: Path) -> Iterator[str]:
    """The URL of a server that wants a client's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "client.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    server = V2Server()
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server.url.replace("http:", "https:")
    server.shutdown()
    server.server_close()
    thread.join()


def test_tensors_and_streams_go_over_mutual_tls(connect: Any, secure: str, certificates: Path) -> None:
    tls = Tls(f"{certificates}/server.pem", f"{certificates}/client.pem", f"{certificates}/client.key")
    client = connect(secure, tls=tls)
    sent = np.random.default_rng(0).random(500_000)
    for _ in range(2):
        np.testing.assert_array_equal(client.call("infer", "echo", {"x": sent})["x"], sent)
    assert len(client.listed("echo", {"text_input": "w"})) == 3


def test_a_server_that_cannot_be_trusted_is_not_spoken_with(connect: Any, secure: str, certificates: Path) -> None:
    with pytest.raises(NotReady, match="certificate verify failed"):
        connect(secure, retries=0).call("live")


def test_a_client_without_a_certificate_is_sent_away_with_our_own_error(
    connect: Any, secure: str, certificates: Path
) -> None:
    with pytest.raises(PenstockError):
        connect(secure, retries=0, tls=Tls(f"{certificates}/server.pem")).call("infer", "echo", {"x": np.zeros(1)})
