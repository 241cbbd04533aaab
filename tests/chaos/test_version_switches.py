"""P9a, P9c, P3b: versions come and go under load; no error, no answer that another version gave, no dip in workers."""

from __future__ import annotations

import concurrent.futures
import json
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from versions_under_load import add, ask, eventually, remove, traffic_to

import penstock

Factory = Callable[..., Any]
Figure = Callable[..., None]

KINDS = ("process", "asyncio", "onnx")
LONG = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def serves(running: Any, name: str, number: int) -> bool:
    return ask(running, name)[0] == str(number)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("control", "fronts", "rounds"),
    [
        ("poll", 2, 3),
        ("explicit", 1, 2),
        pytest.param("poll", 2, 334, marks=LONG),
        pytest.param("explicit", 2, 100, marks=LONG),
    ],
)
def test_switches_under_load_lose_nothing_and_every_answer_is_of_the_version_it_names(
    server: Factory, tmp_path: Path, figure: Figure, control: str, fronts: int, rounds: int
) -> None:
    """Each round switches three models: in process workers, in asyncio workers, and inline. Each third round goes back."""
    folders = {kind: tmp_path / "models" / kind for kind in KINDS}
    for kind, folder in folders.items():
        add(folder, 1, kind)
    options: dict[str, object] = {"poll_s": 0.1} if control == "poll" else {"load_models": list(KINDS)}
    running = server(
        {kind: {"path": str(folder), "timeout_s": 30.0} for kind, folder in folders.items()},
        model_control=control, fronts=fronts, **options,
    )  # fmt: skip
    switches = 0

    def settle(number: int) -> None:
        nonlocal switches
        if control == "explicit":
            with penstock.Client(running.http, retries=0) as client:
                for kind in KINDS:
                    client.load(kind)
        for kind in KINDS:
            eventually(partial(serves, running, kind, number), 60.0, f"{kind} does not switch to {number}")
            switches += 1

    with traffic_to(running, *KINDS) as traffic:
        now, oldest = 1, 1
        for turn in range(1, rounds + 1):
            before, now = now, 2 * turn  # an even number is a link, an odd one a folder
            for kind, folder in folders.items():
                add(folder, now, kind)
            settle(now)
            if turn % 3 == 0:
                for folder in folders.values():
                    remove(folder, now)
                settle(before)
                now = before
            elif oldest < before:
                for folder in folders.values():
                    remove(folder, oldest)
                oldest = before
    assert sum(traffic.answers.values()) > 10 * switches
    assert {version for name, version in traffic.answers if name == "onnx"} >= {"1", "2", "4"}
    wrong = len(traffic.wrong)
    what = f"errors and mixed-up versions in {switches} switches under load, {control}"
    figure("P9a", what, wrong, "of " + str(sum(traffic.answers.values())) + " requests", goal="0")
    assert running.stop() == 0


def test_going_back_to_the_version_before_takes_no_load(server: Factory, tmp_path: Path, figure: Figure) -> None:
    folder = tmp_path / "models" / "m"
    add(folder, 1)
    running = server({"m": {"path": str(folder), "keep_previous_s": 60.0}}, poll_s=0.1)
    first = ask(running, "m")[2]
    times_s: list[float] = []
    with traffic_to(running, "m"):
        for number in (2, 4, 6):
            add(folder, number)
            eventually(partial(serves, running, "m", number))
            remove(folder, number)
            times_s.append(eventually(partial(serves, running, "m", 1)))
            assert ask(running, "m")[2] == first  # the process that served before
    figure("P9c", "going back to the version before, by its folder, longest of three", max(times_s), "s", goal="≤ 1 s")
    assert max(times_s) < 5.0  # poll_s and a busy machine; a load takes no part in it


def test_a_version_is_kept_for_keep_previous_s_and_not_longer(server: Factory, tmp_path: Path) -> None:
    for name in ("kept", "not"):
        add(tmp_path / name, 1)
    running = server(
        {
            "kept": {"path": str(tmp_path / "kept"), "keep_previous_s": 2.0},
            "not": {"path": str(tmp_path / "not"), "keep_previous_s": 0},
        },
        poll_s=0.1,
    )
    pids = {name: ask(running, name)[2] for name in ("kept", "not")}
    for name in ("kept", "not"):
        add(tmp_path / name, 2)
    eventually(partial(serves, running, "not", 2))
    eventually(partial(serves, running, "kept", 2))
    assert ask(running, "kept", "1")[:2] == ("1", 1)
    eventually(lambda: not alive(pids["not"]))
    assert eventually(lambda: not alive(pids["kept"])) < 20.0


def test_going_back_by_a_call_takes_no_load(server: Factory, tmp_path: Path, figure: Figure) -> None:
    folder = tmp_path / "m"
    add(folder, 1)
    running = server({"m": str(folder)}, model_control="explicit", load_models=["m"])
    first = ask(running, "m")[2]
    add(folder, 2)
    with penstock.Client(running.http) as client:
        client.load("m")
    assert serves(running, "m", 2)
    wish = json.dumps({"parameters": {"config": json.dumps({"version_policy": {"specific": {"versions": [1]}}})}})
    request = urllib.request.Request(f"{running.http}/v2/repository/models/m/load", wish.encode(), method="POST")
    with traffic_to(running, "m"), concurrent.futures.ThreadPoolExecutor(1) as pool:
        called = pool.submit(lambda: urllib.request.urlopen(request, timeout=60).read())
        took_s = eventually(partial(serves, running, "m", 1))
        called.result()
    assert ask(running, "m")[2] == first
    figure("P9c", "going back to the version before, by a call", took_s, "s", goal="≤ 1 s")
    assert took_s < 5.0


def test_a_version_takes_over_with_all_its_workers(server: Factory, tmp_path: Path) -> None:
    """P3b. Every worker holds one request for half a second: three at once need three workers."""
    folder = tmp_path / "m"
    slow_load = "import time; time.sleep(0.3)"
    add(folder, 1, more=slow_load, wait_s=0.5)
    running = server({"m": {"path": str(folder), "workers": 3, "batch": False, "warm_up": False}}, poll_s=0.1)
    add(folder, 3, more=slow_load, wait_s=0.5)
    eventually(partial(serves, running, "m", 3))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        pids = set(pool.map(lambda _: ask(running, "m")[2], range(3)))
    assert len(pids) == 3


def test_a_version_whose_workers_do_not_all_start_does_not_take_over(server: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    add(folder, 1)
    running = server({"m": {"path": str(folder), "workers": 2, "load_timeout_s": 20.0}}, poll_s=0.1)
    taken = tmp_path / "taken"
    only_once = f"import os; os.close(os.open({str(taken)!r}, os.O_CREAT | os.O_EXCL))"
    with traffic_to(running, "m") as traffic:
        add(folder, 3, more=only_once)

        def reason() -> str:
            with penstock.Client(running.http) as client:
                return next((s.reason for s in client.index() if s.version == "3" and s.state == "UNAVAILABLE"), "")

        eventually(lambda: "only 1 of 2 workers" in reason() or "was not ready after" in reason(), 40.0)
    assert {version for _, version in traffic.answers} == {"1"}
