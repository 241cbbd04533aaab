"""How cores are shared among workers, and how many there are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.runtime.workers.cgroup import available_cores, oom_kills
from penstock.runtime.workers.threads import thread_plan


@pytest.mark.parametrize(
    ("cores", "workers", "plan"),
    [
        (2, 2, (1, 1)), (2, 1, (2, 0)), (1, 1, (1, 0)), (1, 4, (1, 0)), (2, 4, (1, 1)), (8, 2, (4, 4)), (8, 3, (2, 6)),
        (64, 2, (32, 32)), (64, 32, (2, 6)), (4, 4, (1, 3)), (2, 0, (2, 0)),
    ],
)  # fmt: skip
def test_own_threads_fill_the_cores_once_and_the_rest_is_borrowed(
    cores: int, workers: int, plan: tuple[int, int]
) -> None:
    assert thread_plan(cores, workers) == plan


def test_own_threads_never_exceed_the_cores_together() -> None:
    for cores in range(1, 65):
        for workers in range(1, 65):
            own, borrowed = thread_plan(cores, workers)
            assert own * workers <= max(cores, workers)
            assert own + borrowed <= cores


def test_nothing_is_borrowed_when_told_so_or_when_the_count_is_given() -> None:
    assert thread_plan(8, 2, borrow=False) == (4, 0)
    assert thread_plan(8, 2, threads=3) == (3, 0)
    assert thread_plan(8, 2, threads=0) == (1, 0)


def _files(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_cpu_quota_of_version_2_limits_the_cores(tmp_path: Path) -> None:
    affinity = len(os.sched_getaffinity(0))
    _files(tmp_path, member="0::/a/b\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    cores = lambda: available_cores(tmp_path, tmp_path / "member")  # noqa: E731
    assert cores() == affinity
    for text, want in (("150000 100000", 1), ("max 100000", affinity), ("20000 100000", 1), ("junk", affinity)):
        (tmp_path / "a" / "cpu.max").write_text(text)  # a parent's limit holds too
        assert cores() == min(want, affinity)


def test_a_cpu_quota_of_version_1_limits_the_cores(tmp_path: Path) -> None:
    _files(tmp_path, member="4:cpu,cpuacct:/box\n0::/\n")
    box = tmp_path / "cpu,cpuacct" / "box"
    box.mkdir(parents=True)
    (box / "cpu.cfs_quota_us").write_text("100000")
    (box / "cpu.cfs_period_us").write_text("100000")
    assert available_cores(tmp_path, tmp_path / "member") == 1
    (box / "cpu.cfs_quota_us").write_text("-1")
    assert available_cores(tmp_path, tmp_path / "member") == len(os.sched_getaffinity(0))


def test_memory_kills_are_read_where_the_kernel_counts_them(tmp_path: Path) -> None:
    _files(tmp_path, member="0::/a\n")
    assert oom_kills(tmp_path, tmp_path / "member") is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert oom_kills(tmp_path, tmp_path / "member") == 2
