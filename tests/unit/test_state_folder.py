"""The folder of a server's state: whole or not at all, in order, and damage is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.core.errors import AlreadyExists, Internal, InvalidInput
from penstock.runtime.language.kept_files import Bounds, KeptFiles
from penstock.runtime.language.state import StateFolder

ID, OTHER = f"batch_{1:032x}", f"batch_{2:032x}"


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[StateFolder]:
    folder = StateFolder.open(str(tmp_path / "state"))
    yield folder
    await folder.close()


async def test_what_was_put_is_there_for_the_next_process(state: StateFolder, tmp_path: Path) -> None:
    shelf = state.shelf("files")
    await shelf.put(ID, b"{}", b"body\n" * 1000)
    await shelf.put(ID, b'{"a":1}', b"\n\0new")
    await shelf.put(OTHER, b"[]", b"")
    await shelf.drop(OTHER)
    await state.close()
    again = StateFolder.open(str(tmp_path / "state"))
    assert await again.shelf("files").heads() == {ID: b'{"a":1}'}
    assert await again.shelf("files").body(ID) == b"\n\0new"
    with pytest.raises(Internal, match="gone"):
        await again.shelf("files").body(OTHER)
    await again.close()


@pytest.mark.parametrize("at", [0, 20, 60, 120, 153, 158, 160, 171])
async def test_one_changed_byte_is_found(state: StateFolder, tmp_path: Path, at: int) -> None:
    shelf = state.shelf("files")
    await shelf.put(ID, b'{"a":1}', b"what is kept")
    place = tmp_path / "state" / "files" / ID
    content = bytearray(place.read_bytes())
    assert len(content) > at
    content[at] ^= 1
    place.write_bytes(content)
    found = await shelf.heads()
    if found:
        with pytest.raises(Internal, match="damaged"):
            await shelf.body(ID)
    else:
        assert shelf.damaged(ID) and place.exists()


@pytest.mark.parametrize("length", range(0, 189, 27))
async def test_a_thing_that_is_cut_is_found(state: StateFolder, tmp_path: Path, length: int) -> None:
    shelf = state.shelf("responses")
    await shelf.put(ID, b"{}", b"what is kept" * 3)
    place = tmp_path / "state" / "responses" / ID
    place.write_bytes(place.read_bytes()[:length])
    assert await shelf.heads() == {} and shelf.damaged(ID)


async def test_a_journal_keeps_all_lines_of_many_writers(state: StateFolder) -> None:
    journal = state.journal("batches")
    lines = [b"line %d" % at for at in range(300)]
    await asyncio.gather(*(journal.append(ID if at % 2 else OTHER, line) for at, line in enumerate(lines)))
    assert sorted((await journal.lines(ID))[0]) == sorted(lines[1::2])
    assert (await journal.lines(OTHER))[0] == lines[::2]


async def test_a_torn_end_of_a_journal_was_never_told_of(state: StateFolder, tmp_path: Path) -> None:
    journal = state.journal("batches")
    for line in (b"one", b"two", b"three"):
        await journal.append(ID, line)
    place = tmp_path / "state" / "batches" / f"{ID}.lines"
    whole = place.read_bytes()
    for cut in range(1, 14):  # "three" with its checksum has 15
        place.write_bytes(whole[:-cut])
        assert await journal.lines(ID) == ([b"one", b"two"], "")
        await journal.append(ID, b"four")
        assert await journal.lines(ID) == ([b"one", b"two", b"four"], "")
    place.write_bytes(whole.replace(b"two", b"TWO"))
    lines, damage = await journal.lines(ID)
    assert lines == [b"one"] and "number 2" in damage


async def test_no_name_leads_out_of_the_folder(state: StateFolder) -> None:
    for id in ("../x", "a/b", "", ".", ID + "/..", ID + "\n", f"{ID}.lines"):
        for use in (state.shelf("files").body, state.shelf("files").drop, state.journal("batches").lines):
            with pytest.raises(Internal, match="is no id"):
                await use(id)


async def test_others_files_in_the_folder_are_left_alone(state: StateFolder, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "files"
    (folder / "README").write_text("mine")
    (folder / f"{ID}.new").write_text("half")
    (folder / OTHER).symlink_to(folder / "README")
    assert await state.shelf("files").heads() == {}
    await state.close()
    again = StateFolder.open(str(tmp_path / "state"))
    assert (folder / "README").exists() and not (folder / f"{ID}.new").exists()
    await again.close()


async def test_a_folder_has_one_user(state: StateFolder, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists, match="another server"):
        StateFolder.open(str(tmp_path / "state"))
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be used"):
        StateFolder.open(str(tmp_path / "file"))


async def test_files_expire_and_keep_their_order_over_a_restart(state: StateFolder, tmp_path: Path) -> None:
    now = [1000.0]
    files = KeptFiles(Bounds(), lambda: now[0], state.shelf("files"))
    ids = []
    for at in range(4):
        now[0] += 1
        ids.append((await files.add("a", f"{at}", b"x" * at, "batch", 10.0 if at == 3 else None)).id)
    now[0] += 11
    again = KeptFiles(Bounds(), lambda: now[0], state.shelf("files"))
    await again.restore()
    assert [file.id for file in again.of("a")] == ids[2::-1]
    assert again.of("b") == [] and await again.content("a", ids[2]) == b"xx"
    await state.run(bool)
    assert not (tmp_path / "state" / "files" / ids[3]).exists()
