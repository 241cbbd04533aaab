"""Archives that replicas start from, and what is taken away when nobody needs it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from local_driver import Fleet, infer, replicas

from penstock.core.errors import LoadError
from penstock.fleet.drivers import Launch
from penstock.fleet.local import disused
from penstock.fleet.local.contents import Contents
from penstock.fleet.spec import Run
from penstock.fleet.state import ReplicaState

__all__ = ["replicas"]

MODEL = """
import penstock
@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def model(x):
    return {"y": x * %d}
"""


def archive(folder: Path, factor: int) -> Path:
    source = folder / f"times{factor}"
    source.mkdir()
    (source / "model.py").write_text(MODEL % factor)
    path = folder / "model.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        packed.add(source / "model.py", "model.py")
    return path


async def test_archive_is_unpacked_once_and_a_new_one_is_another(replicas: Fleet) -> None:
    path = archive(replicas.folder, 2)
    run = Run(model=str(path))
    place = replicas.settings.folder / "archives"
    await asyncio.gather(replicas.driver.prepare(run), replicas.driver.prepare(run))
    (unpacked,) = place.iterdir()
    before = (unpacked / "model" / "model.py").stat().st_mtime_ns
    await replicas.driver.start(Launch("one", "deployed", 1, run))
    one = await replicas.until("one", ReplicaState.READY)
    assert await asyncio.to_thread(infer, one, 3.0) == [6.0]
    assert (unpacked / "model" / "model.py").stat().st_mtime_ns == before
    archive(replicas.folder, 5)
    assert (await Contents(place).folder_of(str(path)))[0] != unpacked / "model"
    # A revision never changes: the archive of its first replica serves on, and once that is gone, no other does.
    await replicas.driver.start(Launch("two", "deployed", 1, run, content=one.content))
    two = await replicas.until("two", ReplicaState.READY)
    assert await asyncio.to_thread(infer, two, 3.0) == [6.0]
    assert two.content == one.content and two.content["archive"] == unpacked.name
    shutil.rmtree(unpacked)
    with pytest.raises(LoadError, match=r"no longer the archive .* deploy again"):
        await replicas.driver.prepare(run, one.content)


async def test_archive_that_leads_outside_is_refused_and_nothing_is_left(replicas: Fleet) -> None:
    path = replicas.folder / "bad.tar"
    with tarfile.open(path, "w") as packed:
        entry = tarfile.TarInfo("../../escaped")
        packed.addfile(entry)
    with pytest.raises(LoadError, match=r"cannot be unpacked: .*escaped"):
        await replicas.driver.prepare(Run(model=str(path)))
    assert not [one for one in replicas.settings.folder.rglob("*") if one.is_file()]


def test_only_the_newest_and_those_in_use_stay(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        disused.note_use(tmp_path / str(number))
        os.utime(tmp_path / str(number) / disused.USED, (number, number))
        (tmp_path / f"{number}.log").touch()
    (tmp_path / "unfinished").mkdir()
    assert disused.prune(tmp_path, {"0"}, most=2) == ["2", "1"]
    assert {one.name for one in tmp_path.iterdir() if one.is_dir()} == {"0", "3", "4", "unfinished"}
    assert not (tmp_path / "1.log").exists() and (tmp_path / "0.log").exists()
    assert disused.prune(tmp_path / "none", set()) == []
