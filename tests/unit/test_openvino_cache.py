"""The cache of converted models: made once, whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from penstock.core.errors import LoadError
from penstock.language.files import ModelFiles
from penstock.runtime import conversion
from penstock.runtime.conversion import cache


def write(part: Path) -> None:
    (part / "weights").write_bytes(b"w" * 1000)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    return path


def test_entry_is_made_once_and_found_by_content(tmp_path: Path, source: Path) -> None:
    first = cache.entry(tmp_path / "cache", [source], "1 int8", write)
    moved = source.rename(tmp_path / "moved.gguf")
    assert cache.entry(tmp_path / "cache", [moved], "1 int8", pytest.fail) == first
    assert cache.entry(tmp_path / "cache", [moved], "1 int4", write) != first
    moved.write_bytes(b"two")
    assert cache.entry(tmp_path / "cache", [moved], "1 int8", write) != first


@pytest.mark.parametrize("name", ["weights", cache.MANIFEST])
def test_broken_entry_is_made_again(tmp_path: Path, source: Path, name: str) -> None:
    folder = cache.entry(tmp_path / "cache", [source], "1", write)
    (folder / name).write_bytes(b"x")
    cache.entry(tmp_path / "cache", [source], "1", write)
    assert cache.whole(folder) and (folder / "weights").stat().st_size == 1000


def test_failure_leaves_nothing_and_is_not_remembered(tmp_path: Path, source: Path) -> None:
    def fail(part: Path) -> None:
        write(part)
        raise LoadError("no")

    with pytest.raises(LoadError, match="no"):
        cache.entry(tmp_path / "cache", [source], "1", fail)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert cache.whole(cache.entry(tmp_path / "cache", [source], "1", write))


def test_only_one_makes_it_and_all_get_it(tmp_path: Path, source: Path) -> None:
    made: list[Path] = []

    def make(part: Path) -> None:
        made.append(part)
        write(part)

    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.entry(tmp_path / "cache", [source], "1", make)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(set(found)) == 1 and len(found) == 8


def test_disk_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="make room"):
        cache.check_room(tmp_path, 1 << 60)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}, "llama3"),
        ({"model_type": "llama", "attention_bias": True}, "biases"),
        ({"model_type": "mistral", "sliding_window": 4096}, "slides"),
    ],
)
def test_what_would_come_out_wrong_is_refused(tmp_path: Path, config: dict[str, object], said: str) -> None:
    pytest.importorskip("openvino_genai")
    assert said in conversion.reason(ModelFiles(tmp_path, "huggingface", "generate", "", config))
