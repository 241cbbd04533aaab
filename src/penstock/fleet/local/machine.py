"""What this machine has, for placement."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from penstock.fleet.local import groups
from penstock.fleet.placement import Place

NAME = "local"
_GPU = re.compile(r"nvidia\d+")


def place(environ: Mapping[str, str], devices: Path = Path("/dev")) -> Place:
    """This machine as one place: the processors, the memory and the GPUs that this process may use."""
    cores = float(len(os.sched_getaffinity(0)))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cpu_limit, memory_limit = groups.cpu_limit(), groups.memory_limit()
    return Place(
        NAME,
        cores if cpu_limit is None else min(cores, cpu_limit),
        memory if memory_limit is None else min(memory, memory_limit),
        _gpus(environ, devices),
    )


def _gpus(environ: Mapping[str, str], devices: Path) -> int:
    """Devices are counted by their files: no driver library is needed to start the platform."""
    try:
        found = sum(1 for entry in devices.iterdir() if _GPU.fullmatch(entry.name))
    except OSError:
        return 0
    shown = environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return found
    return min(found, len([one for one in shown.split(",") if one.strip() not in ("", "-1", "NoDevFiles")]))
