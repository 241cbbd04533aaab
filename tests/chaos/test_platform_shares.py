"""P9d and P10a through a real platform: fixed shares are kept, and requests that find nobody are held and answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from running_fleet import FleetFactory, RunningFleet, until

pytestmark = pytest.mark.alone

EXAMPLE = Path(__file__).parents[2] / "examples" / "rollout"
ONE, TWO = (str(EXAMPLE / "models" / number) for number in ("1", "2"))
ROW = json.loads((EXAMPLE / "digits.json").read_text())[0]["image"]
BODY = json.dumps({"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": ROW}]}).encode()
REQUEST = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


async def ask(url: str, times: int) -> tuple[Counter[str], list[float]]:
    """One caller's outcomes, "200 by REVISION" or the status, over one connection, and the seconds each took."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    outcomes: Counter[str] = Counter()
    took = []
    for _ in range(times):
        began = time.monotonic()
        writer.write(REQUEST)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        await reader.readexactly(int(headers["content-length"]))
        status = head.split(" ", 2)[1]
        outcomes[f"200 by {headers.get('penstock-revision')}" if status == "200" else status] += 1
        took.append(time.monotonic() - began)
    writer.close()
    return outcomes, took


async def asked(url: str, callers: int, times: int) -> tuple[Counter[str], list[float]]:
    """All callers' outcomes and times."""
    total: Counter[str] = Counter()
    took: list[float] = []
    for outcomes, seconds in await asyncio.gather(*(ask(url, times) for _ in range(callers))):
        total += outcomes
        took += seconds
    return total, took


def two_revisions(running: RunningFleet, weights: dict[int, float]) -> None:
    platform = running.fleet
    platform.deploy("digits", ONE)
    platform.wait("digits")
    platform.deploy("digits", TWO, traffic={"policy": "split", "options": {"weights": {"1": 1, "2": 1}}})
    platform.wait("digits")
    platform.set_weights("digits", weights)
    total = sum(weights.values())

    def shares() -> bool:
        arms = {arm.revision: arm.weight for arm in platform.status("digits").arms}
        return all(abs(arms.get(number, 0) - weight / total) < 1e-9 for number, weight in weights.items())

    until(shares, f"shares {weights}")


@pytest.mark.parametrize(
    ("count", "points"),
    [
        (4_000, 2.5),  # 4.5 standard deviations of so many draws
        pytest.param(100_000, 1.0, marks=[pytest.mark.chaos, pytest.mark.timeout(900)]),
    ],
)
@pytest.mark.timeout(240)
async def test_shares_are_kept(fleet: FleetFactory, figure: Callable[..., None], count: int, points: float) -> None:
    running = await asyncio.to_thread(fleet, "--routers", "2")
    await asyncio.to_thread(two_revisions, running, {1: 80, 2: 20})
    await asked(running.http, 16, 20)  # until every router has the table
    outcomes, _ = await asked(running.http, 16, count // 16)
    assert set(outcomes) == {"200 by 1", "200 by 2"}
    off = abs(outcomes["200 by 2"] / outcomes.total() * 100 - 20)
    assert off <= points
    figure("P9d", f"share of {outcomes.total():,} requests is off by", round(off, 3), "points", goal="≤ 1")


@pytest.mark.timeout(240)
async def test_a_hundred_requests_that_find_no_replica_are_all_answered(
    fleet: FleetFactory, figure: Callable[..., None]
) -> None:
    running = await asyncio.to_thread(fleet)
    platform = running.fleet

    def asleep() -> bool:
        status = platform.status("digits")
        return status.phase == "scaled-to-zero" and not status.replicas

    platform.deploy("digits", ONE, replicas={"minimum": 0, "maximum": 1, "zero_after_s": 1.0})
    await asyncio.to_thread(platform.wait, "digits")
    await asyncio.to_thread(until, asleep, "a deployment at zero")
    outcomes, took = await asked(running.http, 100, 1)
    assert outcomes == {"200 by 1": 100}
    assert min(took) > 0.2, "somebody answered at once: it was not at zero"
    assert max(took) < 30
    figure(
        "P10a", "from zero, the first of 100 held requests is answered after", round(min(took), 2), "s", goal="≤ 2 s"
    )
    figure("P10a", "from zero, the last of 100 held requests is answered after", round(max(took), 2), "s")
