"""Where a group with a memory limit is made, on file trees like the kernel's. Real groups: tests/chaos."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.runtime.workers.memory_group import MemoryGroup


def hierarchy(tmp_path: Path, own: str) -> tuple[Path, Path]:
    """A version 2 tree in which this process belongs to `own`."""
    root = tmp_path / "cgroup"
    (root / own).mkdir(parents=True)
    for folder in (root, *(root / own).parents, root / own):
        if folder.is_relative_to(root):
            (folder / "cgroup.subtree_control").write_text("")
    member = tmp_path / "member"
    member.write_text(f"0::/{own}\n")
    return root, member


def test_group_is_made_beside_the_own_one_where_that_was_delegated(tmp_path: Path) -> None:
    root, member = hierarchy(tmp_path, "system.slice/penstock.service/main")
    assert MemoryGroup.create(1 << 20, root, member) is not None
    parent = root / "system.slice/penstock.service"
    assert (parent / "cgroup.subtree_control").read_text() == "+memory"
    (made,) = parent.glob("penstock-*-*")
    assert {file.name: file.read_text() for file in made.iterdir()} == {
        "memory.max": str(1 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
    }


@pytest.mark.parametrize("own", ["", "system.slice", "system.slice/penstock.service"])
def test_groups_of_a_service_manager_are_left_alone(tmp_path: Path, own: str) -> None:
    root, member = hierarchy(tmp_path, own)
    assert MemoryGroup.create(1 << 20, root, member) is None
    assert list(root.rglob("penstock-*-*")) == []


def test_without_control_groups_there_is_none(tmp_path: Path) -> None:
    assert MemoryGroup.create(1 << 20, tmp_path, tmp_path / "absent") is None


def test_kills_are_read_from_the_group(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nmax 9\noom 3\noom_kill 2\n")
    assert MemoryGroup(tmp_path).kills == 2
