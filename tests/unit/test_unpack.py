"""F32: what an archive may not do. Refused is refused whole: nothing outside the folder, nothing left beside it."""

from __future__ import annotations

import os
import resource
import stat
import tarfile
from pathlib import Path

import pytest
from archives import BAD, TAR, TGZ, ZIP, Bad, link, long_directory, tar, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.core.errors import AlreadyExists, InvalidInput, LoadError, NotFound, PenstockError, TooLarge
from penstock.packaging.entries import Limits
from penstock.packaging.unpack import is_archive, unpack, unpacked

LIMITS = Limits(entries=2000, free_bytes=16 << 20)
GOOD = (("iris/1/model.onnx", b"weights"), ("iris/model.toml", b"max_batch_size = 4\n"), ("empty/", None))


def everything(folder: Path) -> dict[str, tuple[int, float]]:
    return {str(path.relative_to(folder)): (path.lstat().st_mode, path.lstat().st_mtime) for path in folder.rglob("*")}


def written(tmp_path: Path, data: bytes, suffix: str) -> Path:
    archive = tmp_path / "in" / f"model{suffix}"
    archive.parent.mkdir()
    archive.write_bytes(data)
    return archive


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_hostile_archive_is_refused_and_leaves_nothing(tmp_path: Path, bad: Bad) -> None:
    archive = written(tmp_path, bad.data(), bad.suffix)
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "out").mkdir()
    before = everything(tmp_path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidInput) as refused:
        unpack(archive, tmp_path / "out" / "model", LIMITS)
    after = everything(tmp_path)
    after["out"] = before["out"]  # its time has changed
    assert after == before
    assert not Path("/tmp/outside").exists()
    assert len(str(refused.value)) < 500 and str(tmp_path) not in str(refused.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10, "kilobytes"
    assert isinstance(refused.value, TooLarge) == any(
        word in bad.name for word in ("bomb", "many", "list of entries")
    ), refused.value


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (TAR, tar(*GOOD)),
        (TGZ, tar(*GOOD, compress=True)),
        (".TGZ", tar(*GOOD, compress=True, format=tarfile.GNU_FORMAT)),
        (ZIP, zipped(*GOOD, modes=[0, stat.S_IFREG | 0o4777])),
        (".mar", zipped(*GOOD)),
    ],
)  # fmt: skip
def test_every_format_comes_out_with_plain_permissions(tmp_path: Path, suffix: str, data: bytes) -> None:
    archive = written(tmp_path, data, suffix)
    assert is_archive(archive)
    unpack(archive, tmp_path / "model")
    model = tmp_path / "model" / "iris" / "1" / "model.onnx"
    assert model.read_bytes() == b"weights" and (tmp_path / "model" / "empty").is_dir()
    for path in (tmp_path / "model", *(tmp_path / "model").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "model"]


def test_links_that_stay_inside_come_out_in_any_order(tmp_path: Path) -> None:
    data = tar(
        ("./", None), ("./blobs/a", b"one"), ("snapshot/model.onnx", link("../blobs/a")), ("latest", link("snapshot"))
    )
    unpack(written(tmp_path, data, TAR), tmp_path / "model")
    assert (tmp_path / "model" / "latest" / "model.onnx").read_bytes() == b"one"
    turned = tar(("b", link("a")), ("a", b"two"))
    (tmp_path / "in" / "turned.tar").write_bytes(turned)
    unpack(tmp_path / "in" / "turned.tar", tmp_path / "turned")
    assert (tmp_path / "turned" / "b").read_bytes() == b"two"


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    archive = written(tmp_path, tar(*GOOD), TAR)
    os.symlink("nowhere", tmp_path / "model")
    with pytest.raises(AlreadyExists):
        unpack(archive, tmp_path / "model")
    with pytest.raises(NotFound):
        unpack(tmp_path / "none.tar", tmp_path / "other")


def test_a_place_that_cannot_be_written_is_told_and_left_clean(tmp_path: Path) -> None:
    archive = written(tmp_path, tar(*GOOD), TAR)
    with pytest.raises(LoadError, match="cannot unpack"):
        unpack(archive, tmp_path / "missing" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_limits_count_what_comes_out(tmp_path: Path) -> None:
    archive = written(tmp_path, tar(("a", b"x" * 100_000), compress=True), TGZ)
    with pytest.raises(TooLarge):
        unpack(archive, tmp_path / "model", Limits(total_bytes=100_000))
    with pytest.raises(TooLarge):
        unpack(archive, tmp_path / "model", Limits(entries=0))
    unpack(archive, tmp_path / "model", Limits(total_bytes=120_000))


def test_limits_count_folders_that_no_entry_names(tmp_path: Path) -> None:
    members = [("/".join([f"{number}", *"d" * 62, "f"]), b"") for number in range(10)]
    archive = written(tmp_path, zipped(*members), ZIP)
    with pytest.raises(TooLarge):
        unpack(archive, tmp_path / "model", Limits(entries=639))
    unpack(archive, tmp_path / "model", Limits(entries=640))
    assert sum(1 for _ in (tmp_path / "model").rglob("*")) == 640


def test_a_zip_file_cannot_hide_how_long_its_list_of_entries_is(tmp_path: Path) -> None:
    for honest, kind in ((True, TooLarge), (False, InvalidInput)):
        archive = tmp_path / f"{honest}.zip"
        archive.write_bytes(long_directory(260, 65_535, honest=honest))
        with pytest.raises(kind, match="list of entries"):
            unpack(archive, tmp_path / "model")
    (tmp_path / "short.zip").write_bytes(long_directory(3, 0, honest=True))
    unpack(tmp_path / "short.zip", tmp_path / "model")
    assert len(list((tmp_path / "model").iterdir())) == 3


def test_folders_of_archives_are_called_as_they_are_and_go_away(tmp_path: Path) -> None:
    one = written(tmp_path, tar(*GOOD, compress=True), TGZ)
    (tmp_path / "in" / "plain.onnx").write_bytes(b"")
    with unpacked([str(one), str(tmp_path / "in" / "plain.onnx"), "echo"]) as folders:
        assert list(folders) == [str(one)]
        folder = Path(folders[str(one)])
        assert folder.name == "model" and (folder / "iris" / "model.toml").is_file()
    assert not folder.exists()


SEEDS = {TAR: tar(*GOOD, ("l", link("iris"))), TGZ: tar(*GOOD, compress=True), ZIP: zipped(*GOOD)}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.sampled_from(sorted(SEEDS)),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), max_size=8),
    st.integers(0, 20_000),
)
def test_damaged_archives_are_opened_or_refused(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, changes: list[tuple[int, int]], end: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    data = bytearray(SEEDS[suffix])
    for at, value in changes:
        data[at % len(data)] = value
    archive = folder / f"a{suffix}"
    archive.write_bytes(data[: end if end < len(data) else None])
    (folder / "out").mkdir()
    try:
        unpack(archive, folder / "out" / "model")
    except PenstockError as error:
        assert isinstance(error, InvalidInput), error
        assert not list((folder / "out").iterdir())
    assert {path.name for path in folder.iterdir()} == {archive.name, "out"}
