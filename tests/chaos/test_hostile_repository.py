"""F32: names, links, files and archives that try to lead out of the folders a server was given."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from hostile_wire import exchange
from running_server import START_S, start

import penstock
from penstock.core.errors import PenstockError
from penstock.protocols.v2_grpc import plug as v2_grpc

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "model.onnx"
SECRET = b"not for clients"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`models` is served; `secret` and `private/1/model.onnx` lie beside it."""
    place = tmp_path_factory.mktemp("place")
    (place / "models" / "digits" / "1").mkdir(parents=True)
    (place / "models" / "digits" / "1" / "model.onnx").write_bytes(DIGITS.read_bytes())
    (place / "private" / "1").mkdir(parents=True)
    (place / "private" / "1" / "model.onnx").write_bytes(DIGITS.read_bytes())
    (place / "secret").write_bytes(SECRET)
    return place


@pytest.fixture(scope="module")
def running(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("hostile") / "server"
    folder.mkdir()
    running = start(folder, {}, [str(place / "models")], model_control="explicit", load_models=["digits"], fronts=2)
    yield running
    running.stop()


NAMES = [
    "../private", "..", ".", "../../etc/passwd", "/etc/passwd", "digits/../../private", "digits/1", "digits\\..", "private\0", "\0",
    "%2e%2e", "x" * 5000, "\u202edigits", "d\u0131gits", "digits ", " ", "\r\nX: y", "${HOME}", "$(id)", "`id`", "; id", "{model}", "\ufeff",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_leads_out_of_the_repository(running: Any, place: Path, name: str) -> None:
    before = sorted(place.rglob("*"))
    for path in (
        "/v2/repository/models/{}/load", "/v2/repository/models/{}/unload", "/v2/models/{}/infer", "/v2/models/{}", "/v2/models/{}/trace/setting",
        "/v1/models/{}:predict", "/predict/{}", "/predict/digits/{}", "/v2/models/digits/versions/{}",
    ):  # fmt: skip
        target = path.format(quote(name, safe=""))
        method = "GET" if path in ("/v2/models/{}", "/v2/models/digits/versions/{}") else "POST"
        status, body = exchange(running.http, method, target, b"{}")
        assert 400 <= status < 500, (target, status, body)
        assert SECRET not in body and b"Traceback" not in body and len(body) < 20_000
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("name", [name for name in NAMES if "\0" not in name], ids=ascii)
def test_no_name_leads_out_over_grpc(running: Any, name: str) -> None:
    with grpc.insecure_channel(running.grpc) as channel:
        for method, field in (
            ("RepositoryModelLoad", "model_name"),
            ("ModelMetadata", "name"),
            ("ModelInfer", "model_name"),
        ):
            request: Any = v2_grpc._schema.message(f"inference.{method}Request")(**{field: name})
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(
                    request.SerializeToString(), timeout=20
                )
            assert refused.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT), (
                method,
                refused.value,
            )


@pytest.mark.parametrize(
    "file",
    ["../model.onnx", "1/../../model.onnx", "/tmp/penstock-outside", "//tmp/penstock-outside", "1/../model.onnx", "..", ".", "", "1//model.onnx",
     "1\\..\\model.onnx", "1/\0/model.onnx", "1/" + "x" * 300, "a/" * 3000 + "b", "./1/model.onnx"],
    ids=lambda file: ascii(file[:30]),
)  # fmt: skip
def test_no_file_of_a_load_call_leads_out(running: Any, file: str) -> None:
    before = sorted(Path(tempfile.gettempdir()).glob("penstock-load-*"))
    content = base64.b64encode(DIGITS.read_bytes()).decode()
    body = json.dumps({"parameters": {"config": '{"max_batch_size": 4}', f"file:{file}": content}}).encode()
    status, answer = exchange(running.http, "POST", "/v2/repository/models/brought/load", body)
    assert status == 400, answer
    assert not Path("/tmp/penstock-outside").exists()
    assert sorted(Path(tempfile.gettempdir()).glob("penstock-load-*")) == before, "files of a refused call stay"
    with penstock.Client(running.http) as client:
        assert client.models() == ["digits"]
        if "\0" not in file:
            with pytest.raises(PenstockError):
                client.load("digits", config={"max_batch_size": 4}, files={file: b"x"})
        assert client.ready("digits")


def test_links_that_leave_the_repository_are_not_followed(running: Any, place: Path) -> None:
    os.symlink(place / "private", place / "models" / "borrowed")
    os.symlink("../private", place / "models" / "upward")
    (place / "models" / "inner" / "1").mkdir(parents=True)
    os.symlink(place / "private" / "1" / "model.onnx", place / "models" / "inner" / "1" / "model.onnx")
    os.symlink(place / "secret", place / "models" / "secret.onnx")
    try:
        with penstock.Client(running.http) as client:
            for name in ("borrowed", "upward", "inner", "secret"):
                with pytest.raises(PenstockError) as refused:
                    client.load(name)
                assert SECRET.decode() not in str(refused.value)
            assert client.models() == ["digits"]
            client.load("digits")
            assert client.ready("digits")
    finally:
        for name in ("borrowed", "upward", "secret.onnx"):
            (place / "models" / name).unlink()
        (place / "models" / "inner" / "1" / "model.onnx").unlink()


# Archives


def archive_of(tmp_path: Path, suffix: str) -> Path:
    file = tmp_path / f"numbers{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.write(DIGITS, "1/model.onnx")
    else:
        with tarfile.open(file, "w:gz") as tar:
            tar.add(DIGITS, "1/model.onnx")
    return file


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_a_model_is_served_out_of_an_archive_which_leaves_nothing(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("temporary", "server"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    running = start(tmp_path / "server", {}, [str(archive_of(tmp_path, suffix))])
    try:
        with penstock.Client(running.http) as client:
            assert client.models() == ["numbers"]
            assert [path.name for path in (tmp_path / "temporary").glob("penstock-archive-*")]
    finally:
        assert running.stop() == 0
    assert not list((tmp_path / "temporary").glob("penstock-archive-*"))


def test_a_hostile_archive_starts_no_server(tmp_path: Path) -> None:
    member = tarfile.TarInfo("../outside")
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "model.tar.gz", "w:gz") as archive:
        archive.addfile(member)
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli", "serve", "in/model.tar.gz", "--http-port", "0", "--grpc-port", "0"],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path / "in")}, capture_output=True, text=True, timeout=START_S,
    )  # fmt: skip
    assert done.returncode == 2 and "'../outside' in the archive leads out" in " ".join(done.stderr.split())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "model.tar.gz"]
