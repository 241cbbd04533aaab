"""How large things are to be: what the user set, else what the code declares, else what the machine has."""

from __future__ import annotations

from pathlib import Path

from penstock.core.declare import Batch as DeclaredBatch
from penstock.core.resources import Device, workers_that_fit
from penstock.core.servable import Adapter
from penstock.runtime.batching.policy import BatchLimits
from penstock.runtime.options import ModelOptions

# Adapters whose authors say themselves what axis 0 is, and whose memory and state only they know.
OWN_WORD = ("python", "echo", "language")


def batch_limits(options: ModelOptions, declared: DeclaredBatch | None) -> BatchLimits:
    """The limits of one batch: what the user set, else what the model's code declares, else the defaults."""
    unset = ModelOptions()
    if declared is None:
        return BatchLimits(options.max_batch_size, options.batch_delay_s, options.batch_sizes)
    return BatchLimits(
        declared.max_size if options.max_batch_size == unset.max_batch_size else options.max_batch_size,
        declared.delay_s if options.batch_delay_s == unset.batch_delay_s else options.batch_delay_s,
        declared.sizes if options.batch_sizes == unset.batch_sizes else options.batch_sizes,
    )


def worker_count(options: ModelOptions, devices: list[Device], adapter: Adapter, cores: int) -> int:
    """Workers as told, else: as many as fill the named accelerators; one for user code, whose memory and state only its
    author knows; two for library models where there are cores for them."""
    if options.workers is not None:
        return options.workers
    on_devices = workers_that_fit(devices)
    if on_devices is not None:
        return on_devices
    return 1 if adapter.name in OWN_WORD else min(2, cores)


def size_bytes(path: Path) -> int:
    """Of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def process_bytes(pid: int) -> int:
    """Memory that ending a process would give back: its own, and its part of what it shares. 0 when it is gone.

    Source: proc_pid_smaps(5), Pss.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
    except (OSError, ValueError, IndexError):
        return 0


def asked_to_join(options: ModelOptions, declared: DeclaredBatch | None) -> bool:
    """Whether the user or the model's code says how requests are to be joined: then no measurement overrules it."""
    unset = ModelOptions()
    return (
        declared is not None
        or options.max_batch_size != unset.max_batch_size
        or options.batch_delay_s > 0
        or bool(options.batch_sizes)
    )
