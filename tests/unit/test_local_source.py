"""The disk as a source: what it offers while files come, change and go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from penstock.core.errors import InvalidInput, LoadError, NotFound
from penstock.runtime.options import ModelOptions
from penstock.runtime.sources.local import LocalSource
from penstock.runtime.sources.memory import MemorySource


def put(path: Path, content: str = "model") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def numbers(source: LocalSource, name: str = "fraud") -> list[int]:
    wished = source.poll()
    return sorted(wished[name].versions) if name in wished else []


@pytest.fixture
def models(tmp_path: Path) -> Path:
    put(tmp_path / "models" / "fraud" / "1" / "model.onnx")
    return tmp_path / "models"


def test_folder_of_models_is_offered_with_its_templates_options(models: Path) -> None:
    put(models / "iris.onnx")
    wished = LocalSource([ModelOptions(path=str(models), max_queue=5)]).poll()
    assert sorted(wished) == ["fraud", "iris"]
    fraud = wished["fraud"]
    assert (fraud.adapter, fraud.options.name, fraud.options.max_queue) == ("onnx", "fraud", 5)
    assert fraud.options.path == str(models / "fraud")
    assert fraud.versions[1].path == models / "fraud" / "1" / "model.onnx"


def test_several_folders_are_offered_together_and_may_not_clash(models: Path, tmp_path: Path) -> None:
    put(tmp_path / "more" / "iris.onnx")
    entries = [ModelOptions(path=str(models)), ModelOptions(path=str(tmp_path / "more"))]
    assert sorted(LocalSource(entries).poll()) == ["fraud", "iris"]
    put(tmp_path / "more" / "fraud.onnx")
    with pytest.raises(InvalidInput, match="two models are called 'fraud'"):
        LocalSource(entries).poll()


def test_versions_and_models_come_and_go(models: Path) -> None:
    source = LocalSource([ModelOptions(path=str(models))])
    assert numbers(source) == [1]
    put(models / "fraud" / "2" / "model.onnx")
    put(models / "late.onnx")
    assert numbers(source) == [1, 2]
    assert numbers(source, "late") == [1]
    shutil.rmtree(models / "fraud" / "1")
    (models / "late.onnx").unlink()
    assert numbers(source) == [2]
    assert numbers(source, "late") == []


def test_named_model_is_taken_as_it_was_put_together(models: Path) -> None:
    put(models / "fraud" / "model.toml", "max_batch_size = 8\n")
    named = ModelOptions(path=str(models / "fraud"), name="renamed", max_batch_size=64)
    assert LocalSource([named]).poll()["renamed"].options.max_batch_size == 64
    assert LocalSource([ModelOptions(path=str(models))]).poll()["fraud"].options.max_batch_size == 8
    with pytest.raises(InvalidInput, match="several models"):
        put(models / "iris.onnx")
        LocalSource([ModelOptions(path=str(models), name="one")]).poll()


def test_fingerprint_changes_with_the_versions_files_and_its_own_only(models: Path) -> None:
    put(models / "fraud" / "2" / "model.onnx")
    source = LocalSource([ModelOptions(path=str(models))])
    before = source.poll()["fraud"].versions
    assert source.poll()["fraud"].versions == before
    put(models / "fraud" / "2" / "labels.json")
    after = source.poll()["fraud"].versions
    assert after[1] == before[1]
    assert after[2].fingerprint != before[2].fingerprint


def test_flat_file_does_not_change_with_its_neighbours(models: Path) -> None:
    put(models / "iris.onnx")
    source = LocalSource([ModelOptions(path=str(models))])
    before = source.poll()["iris"]
    put(models / "other.onnx")
    assert source.poll()["iris"] == before
    put(models / "iris.onnx.data")
    assert source.poll()["iris"] != before


def test_settling_source_waits_until_a_new_version_stays_the_same(models: Path) -> None:
    source = LocalSource([ModelOptions(path=str(models))], settle=True)
    assert numbers(source) == [1]  # the first poll takes what is there
    file = put(models / "fraud" / "2" / "model.onnx", "ha")
    assert numbers(source) == [1]
    file.write_text("half")
    assert numbers(source) == [1]
    file.write_text("half and half")
    assert numbers(source) == [1]
    assert numbers(source) == [1, 2]
    assert numbers(source) == [1, 2]


def test_settling_source_keeps_the_old_state_while_files_change(models: Path) -> None:
    source = LocalSource([ModelOptions(path=str(models))], settle=True)
    old = source.poll()["fraud"].versions[1]
    file = models / "fraud" / "1" / "model.onnx"
    for text in ("new", "newer", "newest"):
        file.write_text(text)
        os.utime(file, ns=(len(text), len(text)))
        assert source.poll()["fraud"].versions[1] == old
    assert source.poll()["fraud"].versions[1] != old


def test_version_moved_into_place_is_offered_whole(models: Path) -> None:
    source = LocalSource([ModelOptions(path=str(models))])
    source.poll()
    put(models / "fraud" / ".2" / "model.onnx")
    assert numbers(source) == [1]
    (models / "fraud" / ".2").rename(models / "fraud" / "2")
    assert numbers(source) == [1, 2]


def test_link_out_of_the_root_stops_a_start_but_not_a_running_server(models: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "model.onnx")
    source = LocalSource([ModelOptions(path=str(models / "fraud"))])
    source.poll()
    (models / "fraud" / "2").symlink_to(tmp_path / "elsewhere")
    assert numbers(source) == [1]
    with pytest.raises(LoadError, match="leads out"):
        LocalSource([ModelOptions(path=str(models / "fraud"))]).poll()


def test_links_inside_the_root_and_a_linked_root_are_followed(models: Path, tmp_path: Path) -> None:
    put(models / "..data" / "model.onnx")  # as mounted volumes of Kubernetes look
    (models / "fraud" / "3").symlink_to(models / "..data")
    (tmp_path / "link").symlink_to(models)
    assert numbers(LocalSource([ModelOptions(path=str(tmp_path / "link"))])) == [1, 3]


def test_model_taken_away_goes_but_a_disk_taken_away_takes_nothing(models: Path, tmp_path: Path) -> None:
    source = LocalSource([ModelOptions(path=str(models / "fraud"), name="fraud")])
    before = source.poll()["fraud"].versions
    models.rename(tmp_path / "gone")
    assert source.poll()["fraud"].versions == before
    assert "there is nothing at" in source.poll()["fraud"].trouble
    (tmp_path / "gone").rename(models)
    shutil.rmtree(models / "fraud")
    assert source.poll() == {}


def test_missing_path_stops_a_start(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        LocalSource([ModelOptions(path=str(tmp_path / "gone"))]).poll()


def test_options_given_by_a_function_are_asked_for_each_poll(models: Path) -> None:
    entries = [ModelOptions(path=str(models / "fraud"), name="fraud", max_queue=1)]
    source = LocalSource(lambda: entries)
    assert source.poll()["fraud"].options.max_queue == 1
    entries[0] = ModelOptions(path=str(models / "fraud"), name="fraud", max_queue=2)
    assert source.poll()["fraud"].options.max_queue == 2


def test_memory_source_offers_what_it_is_told(tmp_path: Path) -> None:
    source = MemorySource([ModelOptions(path="echo")])
    first = source.poll()
    assert first["echo"].versions[1].path == Path("echo")
    source.offer(ModelOptions(name="b"), "echo", {1: Path("echo"), 4: Path("echo")}, fingerprint="2")
    assert sorted(source.poll()["b"].versions) == [1, 4]
    assert source.poll()["b"].versions[4].fingerprint == "2"
    assert "b" not in first
    source.withdraw("echo")
    assert sorted(source.poll()) == ["b"]
    source.fail(LoadError("the disk is gone"))
    with pytest.raises(LoadError, match="the disk is gone"):
        source.poll()
    source.fail(None)
    assert sorted(source.poll()) == ["b"]


def test_broken_settings_of_one_model_do_not_stop_the_others_from_being_followed(models: Path) -> None:
    put(models / "iris.onnx")
    source = LocalSource([ModelOptions(path=str(models))])
    before = source.poll()
    put(models / "fraud" / "model.toml", "max_batch_size = ")
    put(models / "fraud" / "2" / "model.onnx")
    put(models / "new" / "1" / "model.onnx")
    now = source.poll()
    assert set(now) == {"fraud", "iris", "new"}
    assert now["fraud"].versions == before["fraud"].versions
    assert "model.toml" in now["fraud"].trouble
    assert "is no TOML" in now["fraud"].trouble
    (models / "fraud" / "model.toml").unlink()
    assert numbers(source) == [1, 2]
    assert source.poll()["fraud"].trouble == ""


def test_new_model_with_broken_settings_is_reported_and_not_offered(models: Path) -> None:
    source = LocalSource([ModelOptions(path=str(models))])
    source.poll()
    put(models / "new" / "model.toml", "max_batch_size = -1")
    put(models / "new" / "1" / "model.onnx")
    new = source.poll()["new"]
    assert not new.versions
    assert "max_batch_size" in new.trouble
    (models / "new" / "model.toml").unlink()
    assert numbers(source, "new") == [1]


def test_named_model_in_trouble_keeps_what_it_had_while_another_path_is_followed(models: Path, tmp_path: Path) -> None:
    put(tmp_path / "other" / "1" / "model.onnx")
    named = [ModelOptions(path=str(models / "fraud"), name="a"), ModelOptions(path=str(tmp_path / "other"), name="b")]
    source = LocalSource(named)
    source.poll()
    put(models / "fraud" / "model.toml", "[")
    put(tmp_path / "other" / "2" / "model.onnx")
    assert numbers(source, "a") == [1]
    assert numbers(source, "b") == [1, 2]
    shutil.rmtree(models / "fraud")
    assert "a" not in source.poll()


def test_folder_that_is_empty_of_a_sudden_takes_no_model_away(models: Path) -> None:
    """A disk that was unmounted leaves its mount point."""
    source = LocalSource([ModelOptions(path=str(models))])
    source.poll()
    (models / "fraud").rename(models.parent / "away")
    now = source.poll()
    assert list(now) == ["fraud"]
    assert "holds no model" in now["fraud"].trouble
