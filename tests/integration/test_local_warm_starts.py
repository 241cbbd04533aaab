"""How fast a replica comes up, and what keeps it so while there is none."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from local_driver import Fleet, eventually, infer, replicas

from penstock.fleet.local.pages import Pages, files_of, resident_bytes

__all__ = ["replicas"]

SIZE = 8 << 20


def evict(path: Path) -> None:
    """Takes a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def test_files_of_a_deployment_without_a_replica_stay_in_memory(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(os.urandom(SIZE))
    evict(weights)
    assert resident_bytes(weights) < SIZE
    pages = Pages(interval_s=0.05)
    try:
        pages.keep("fraud", [str(weights), str(tmp_path / "gone")])
        await eventually(lambda: resident_bytes(weights) >= SIZE, "it is in memory")
        evict(weights)
        await eventually(lambda: resident_bytes(weights) >= SIZE, "it is there again")
        pages.release("fraud")
        await asyncio.sleep(0.2)  # the pass that is under way ends
        evict(weights)
        await asyncio.sleep(0.2)
        assert resident_bytes(weights) < SIZE, "nobody reads it any more"
    finally:
        await pages.close()


async def test_driver_keeps_the_files_of_the_last_replica(replicas: Fleet) -> None:
    big = replicas.folder / "weights"
    big.write_bytes(os.urandom(SIZE))
    replicas.models.write_text(
        "import mmap\nclass Mapped:\n"
        "    def load(self, artifact, context):\n"
        f"        self.file = open({str(big)!r}, 'rb')\n"
        "        self.map = mmap.mmap(self.file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "    def predict(self, inputs):\n        return inputs\n"
    )
    one = await replicas.start("one", "Mapped")
    assert one.pid is not None
    assert str(big) in files_of([str(replicas.models)], replicas.processes("one"))
    await replicas.start("two", "Mapped")
    await replicas.driver.stop("one", 5.0)
    await replicas.until("one", None)
    evict(big)
    await asyncio.sleep(0.3)
    assert resident_bytes(big) < SIZE, "another replica keeps its own files; nothing is read for it"
    await replicas.driver.stop("two", 5.0)
    await replicas.until("two", None)
    evict(big)
    pages = replicas.driver._pages
    pages._wake.set()  # as the interval does, which is long
    await eventually(lambda: resident_bytes(big) >= SIZE, "what its worker had mapped is in memory")


async def test_start_to_first_answer(replicas: Fleet, figure) -> None:
    took: list[tuple[float, float]] = []
    for number in range(3):
        began = time.monotonic()
        ready = await replicas.start(f"r{number}", "double")
        await asyncio.to_thread(infer, ready, 1.0)
        took.append((time.monotonic() - began, sum(map(processor_s, replicas.processes(ready.id)))))
        await replicas.driver.stop(ready.id, 5.0)
        await replicas.until(ready.id, None)
    wall_s, cpu_s = (min(one) for one in zip(*took, strict=True))
    figure("P10b", "replica of the platform: start to first answer, user code in a worker", wall_s, "s", goal="≤ 1.5 s")
    figure("P10b", "replica of the platform: processor time of a start", cpu_s, "s")
    assert cpu_s <= 1.5, "it cannot be faster than this on any machine"
    if os.getloadavg()[0] < os.cpu_count():  # the promise is about a machine that has a processor for it
        assert wall_s <= 1.5


def processor_s(pid: int) -> float:
    """Processor time that a process has used so far. Source: proc(5), fields 14 and 15 of stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
