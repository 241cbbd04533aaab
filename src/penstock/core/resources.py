"""Devices, as users write them and as workers get them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.errors import InvalidInput

_DEVICE = re.compile(r"(cpu|cuda(?::(\d+))?)(?:\*(0?\.\d+|1(?:\.0*)?))?")


@dataclass(frozen=True, slots=True)
class Device:
    """One device and the share of it that a worker may plan with (0 to 1)."""

    name: str  # "cpu" or "cuda:N"
    fraction: float = 1.0


def parse_device(text: str) -> Device:
    """The device of `cpu`, `cuda`, `cuda:1` or `cuda:0*0.5` (half of it). Raises: InvalidInput."""
    match = _DEVICE.fullmatch(text.strip())
    if not match:
        raise InvalidInput(f"device {text!r}: write `cpu`, `cuda:0`, or `cuda:0*0.5` for a share of one")
    name = "cpu" if match[1] == "cpu" else f"cuda:{match[2] or 0}"
    return Device(name, float(match[3]) if match[3] else 1.0)


def deal(devices: Sequence[Device], worker: int) -> Device:
    """The device of worker number `worker`: they are dealt in turn."""
    return devices[worker % len(devices)]


def workers_that_fit(devices: Sequence[Device]) -> int | None:
    """How many workers fill the named accelerators (two on `cuda:0*0.5`); None for processors alone."""
    accelerators = [device for device in devices if device.name != "cpu"]
    if not accelerators:
        return None
    return sum(max(1, int(1 / device.fraction + 1e-9)) for device in accelerators)
