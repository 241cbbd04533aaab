"""An artifact's files, fingerprint and hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from penstock.core.errors import LoadError
from penstock.runtime.artifact import Snapshot, artifact_sha256, files_of, fingerprint


def test_hash_of_one_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"weights" * 400_000)  # more than one chunk
    assert artifact_sha256(tmp_path / "m.onnx") == hashlib.sha256(b"weights" * 400_000).hexdigest()


def test_hash_of_a_folder_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / "a" / "x").write_bytes(b"1")
    (tmp_path / "a" / "deep" / "y").write_bytes(b"2")
    (tmp_path / "b" / "deep" / "y").write_bytes(b"2")
    (tmp_path / "b" / "x").write_bytes(b"1")
    os.utime(tmp_path / "b" / "x", (1, 1))
    same = artifact_sha256(tmp_path / "a")
    assert artifact_sha256(tmp_path / "b") == same
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "z")
    assert artifact_sha256(tmp_path / "b") != same


def test_weights_beside_the_file_belong_to_it(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"graph")
    alone = artifact_sha256(tmp_path / "m.onnx")
    (tmp_path / "other.onnx.data").write_bytes(b"not ours")
    assert artifact_sha256(tmp_path / "m.onnx") == alone
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    assert artifact_sha256(tmp_path / "m.onnx") != alone


def test_python_name_means_its_file_and_other_names_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("x = 1\n")
    assert artifact_sha256(tmp_path / "app.py:Model") == hashlib.sha256(b"x = 1\n").hexdigest()
    assert artifact_sha256(Path("echo")) == ""
    assert artifact_sha256(Path("package.module:Name")) == ""


def test_hidden_unfinished_and_cached_files_are_no_part(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"1")
    before = fingerprint(tmp_path)
    (tmp_path / ".hidden").write_bytes(b"1")
    (tmp_path / "m.onnx.part").write_bytes(b"1")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_bytes(b"1")
    assert fingerprint(tmp_path) == before
    assert [name for name, _ in files_of(tmp_path)] == ["m.onnx"]


def test_fingerprint_changes_with_size_time_name_and_replacement(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"1")
    seen = [fingerprint(tmp_path)]
    file.write_bytes(b"12")
    seen.append(fingerprint(tmp_path))
    os.utime(file, ns=(1, 1))
    seen.append(fingerprint(tmp_path))
    (tmp_path / "labels.json").write_bytes(b"{}")
    seen.append(fingerprint(tmp_path))
    replacement = tmp_path / ".new"
    replacement.write_bytes(b"12")
    os.utime(replacement, ns=(1, 1))
    replacement.rename(file)
    seen.append(fingerprint(tmp_path))
    assert len(set(seen)) == 5
    assert fingerprint(tmp_path) == seen[-1]


def test_link_out_of_the_models_folder_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_text("key")
    version = tmp_path / "models" / "m" / "1"
    version.mkdir(parents=True)
    (version / "weights").symlink_to(secret)
    with pytest.raises(LoadError, match="leads out"):
        artifact_sha256(version)


def test_links_of_hugging_faces_cache_are_followed_into_its_blobs_only(tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "c0ffee", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("weights")
    (snapshot / "model.safetensors").symlink_to(Path("..", "..", "blobs", "abc"))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.safetensors").write_text("weights")
    assert artifact_sha256(snapshot) == artifact_sha256(tmp_path / "plain")
    (repository / "secret").write_text("key")
    (snapshot / "config.json").symlink_to(Path("..", "..", "secret"))
    with pytest.raises(LoadError, match="leads out"):
        artifact_sha256(snapshot)


def test_link_to_another_version_is_followed(tmp_path: Path) -> None:
    for number in ("1", "2"):
        (tmp_path / "m" / number).mkdir(parents=True)
    (tmp_path / "m" / "1" / "weights").write_text("w")
    (tmp_path / "m" / "2" / "weights").symlink_to(tmp_path / "m" / "1" / "weights")
    assert artifact_sha256(tmp_path / "m" / "2") == artifact_sha256(tmp_path / "m" / "1")


def test_snapshot_names_a_file_that_changed_and_overlooks_new_ones(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    snapshot = Snapshot(tmp_path)
    (tmp_path / "cache").write_text("made while loading")
    assert snapshot.changed() == ""
    (tmp_path / ".b.new").write_text("new")
    (tmp_path / ".b.new").rename(tmp_path / "b")
    assert snapshot.changed() == "b"
    snapshot = Snapshot(tmp_path)
    (tmp_path / "a").unlink()
    assert snapshot.changed() == "a"
    assert Snapshot(tmp_path / "gone").changed() == ""
