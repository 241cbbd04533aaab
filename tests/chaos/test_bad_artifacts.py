"""F18: files that are not what they should be, or that change: nothing of them is served, and the reason is told."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from versions_under_load import add, ask, code, eventually, onnx_bytes, traffic_to

import penstock
from penstock.core.errors import InvalidInput
from penstock.runtime.artifact import artifact_sha256
from penstock.runtime.assemble import Written, effective

Factory = Callable[..., Any]


def reason(running: Any, name: str, version: int) -> str:
    with penstock.Client(running.http) as client:
        return next((s.reason for s in client.index() if (s.name, s.version) == (name, str(version))), "")


def put(folder: Path, number: int, content: bytes) -> None:
    hidden = folder / f".v{number}"
    hidden.mkdir(parents=True)
    (hidden / "model.onnx").write_bytes(content)
    hidden.rename(folder / str(number))


def test_content_that_is_not_the_expected_one_is_refused_with_both_hashes(server: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    whole = {number: onnx_bytes(number) for number in (1, 2, 3, 4)}
    hashes = {number: hashlib.sha256(content).hexdigest() for number, content in whole.items()}
    put(folder, 1, whole[1])
    running = server(
        {"m": {"path": str(folder), "sha256": {str(n): hashes[n].upper() if n == 1 else hashes[n] for n in (1, 2, 3)}}},
        poll_s=0.1,
    )
    with traffic_to(running, "m") as traffic:
        # One bit of the ballast: the model loads, and answers almost the same.
        at = whole[2].index(b"ballast") - 4
        flipped = whole[2][:at] + bytes([whole[2][at] ^ 1]) + whole[2][at + 1 :]
        put(folder, 2, flipped)
        eventually(lambda: hashes[2] in reason(running, "m", 2))
        assert hashlib.sha256(flipped).hexdigest() in reason(running, "m", 2)
        put(folder, 4, whole[4])
        eventually(lambda: "names no version 4" in reason(running, "m", 4))
        assert {version for _, version in traffic.answers} == {"1"}
    (folder / "4" / "model.onnx").unlink()
    (folder / "4").rmdir()
    put(folder, 3, whole[3])
    eventually(lambda: ask(running, "m")[:2] == ("3", 3))


def test_a_hash_that_is_none_stops_the_start(tmp_path: Path) -> None:
    add(tmp_path / "m", 1)
    file = tmp_path / "penstock.toml"
    file.write_text(f"[models.m]\npath = {str(tmp_path / 'm')!r}\nsha256 = {{ 1 = 'abc' }}\n")
    with pytest.raises(InvalidInput, match="64 hexadecimal digits"):
        effective(Written(), str(file))


def test_files_that_change_while_they_are_loaded_are_not_taken_until_they_stay_the_same(
    server: Factory, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    add(folder, 1)
    running = server({"m": str(folder)}, model_control="explicit", load_models=["m"])
    add(folder, 3, more="import time; time.sleep(2.0)")
    failures: list[Exception] = []

    def call() -> None:
        try:
            with penstock.Client(running.http, timeout_s=60.0) as client:
                client.load("m")
        except Exception as error:
            failures.append(error)

    with traffic_to(running, "m") as traffic:
        caller = threading.Thread(target=call)
        caller.start()
        with penstock.Client(running.http) as client:
            eventually(lambda: any(s.version == "3" and s.state == "LOADING" for s in client.index()))
        deadline = time.monotonic() + 60
        while caller.is_alive() and time.monotonic() < deadline:  # rewritten again and again, in place and by renaming
            (folder / "3" / "model.py").write_text(code(9))
            (folder / ".next").write_text(code(9, more="import time; time.sleep(2.0)"))
            (folder / ".next").rename(folder / "3" / "model.py")
            time.sleep(0.02)
        caller.join()
        assert "changed while the model was loaded" in str(failures[0])
        assert {version for _, version in traffic.answers} == {"1"}
    (folder / "3" / "model.py").write_text(code(3))
    with penstock.Client(running.http) as client:
        client.load("m")
    assert ask(running, "m")[:2] == ("3", 3)


def test_a_replaced_worker_serves_what_its_version_was_loaded_from_or_nothing(server: Factory, tmp_path: Path) -> None:
    """The files of a version that serves are rewritten in place; then its workers die."""
    folder = tmp_path / "m"
    add(folder, 1, wait_s=0.1)
    running = server({"m": {"path": str(folder), "workers": 2, "batch": False}}, model_control="none")

    def answering() -> set[int]:
        with ThreadPoolExecutor(2) as threads:
            return {pid for _, _, pid in threads.map(lambda _: ask(running, "m"), range(2))}

    original = (folder / "1" / "model.py").read_bytes()
    eventually(lambda: len(answering()) == 2)
    (folder / "1" / "model.py").write_text(code(666))
    one, other = answering()
    os.kill(one, signal.SIGKILL)
    assert running.log is not None
    log = running.log
    eventually(lambda: "is no longer what version 1 was loaded from" in log.read_text())
    for _ in range(20):
        assert ask(running, "m") == ("1", 1, other)  # never 666
    (folder / "1" / "model.py").write_bytes(original)  # touched, with the same content: it comes back
    eventually(lambda: len(answering()) == 2)
    assert ask(running, "m")[:2] == ("1", 1)


def test_a_folder_whose_files_keep_changing_is_not_loaded_half(server: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    put(folder, 1, onnx_bytes(1))
    running = server({"m": str(folder)}, poll_s=0.2)
    whole = onnx_bytes(2, weights=20_000)
    (folder / "2").mkdir()
    with traffic_to(running, "m") as traffic:
        with (folder / "2" / "model.onnx").open("wb") as file:  # a slow copy, into the place itself
            step = len(whole) // 25
            for at in range(0, len(whole), step):
                file.write(whole[at : at + step])
                file.flush()
                time.sleep(0.05)
                assert reason(running, "m", 2) == ""
        eventually(lambda: ask(running, "m")[:2] == ("2", 2))
    assert {version for _, version in traffic.answers} <= {"1", "2"}


def test_the_published_hash_is_the_one_to_expect(server: Factory, tmp_path: Path) -> None:
    """What the log says of a loaded version can be written into `sha256`; of one file it is what `sha256sum` shows."""
    put(tmp_path / "m", 1, onnx_bytes(1))
    add(tmp_path / "code", 1)
    running = server({name: str(tmp_path / name) for name in ("m", "code")}, model_control="none")
    assert running.log is not None
    log = running.log.read_text()
    assert hashlib.sha256(onnx_bytes(1)).hexdigest() in log
    assert artifact_sha256(tmp_path / "code" / "1") in log
