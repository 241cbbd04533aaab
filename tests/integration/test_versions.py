"""Versions, labels, polling, explicit control and several fronts, against a real server under traffic."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import until

import penstock
from penstock.core.errors import InvalidInput, LoadError, NotFound, NotReady, PenstockError, Unsupported

Factory = Callable[..., Any]

MODEL = """
import os, time
import numpy as np, penstock

@penstock.model(inputs={{"x": "f8[n]"}}, outputs={{"y": "f8[n]", "pid": "i8[n]"}})
def {name}(x):
    time.sleep({sleep_s})
    return {{"y": x * {factor}, "pid": np.full(len(x), os.getpid())}}
{more}
"""


def write_version(folder: Path, number: int, factor: float, *, sleep_s: float = 0.0, more: str = "") -> None:
    """Adds a version as a careful user does: written beside, then renamed."""
    hidden = folder / f".new{number}"
    hidden.mkdir(parents=True)
    (hidden / "model.py").write_text(MODEL.format(name="model", factor=factor, sleep_s=sleep_s, more=more))
    hidden.rename(folder / str(number))


def answer(running: Any, version: str = "", name: str = "m") -> tuple[float, str, int]:
    with penstock.Client(running.http, retries=0) as client:
        result = client.infer(name, {"x": np.array([1.0])}, version=version)
        return float(result["y"][0]), result.version, int(result["pid"][0])


def serves(running: Any, version: str) -> bool:
    return answer(running)[1] == version


def states(running: Any) -> dict[str, str]:
    with penstock.Client(running.http) as client:
        return {f"{status.name}/{status.version}": status.state for status in client.index()}


def test_switch_under_load_loses_nothing_and_no_answer_names_the_wrong_version(server: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    write_version(folder, 1, 1.0)
    running = server({"m": {"path": str(folder), "keep_previous_s": 0}}, poll_s=0.1)
    wrong: list[object] = []
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def load() -> None:
        with penstock.Client(running.http, retries=0) as client:
            while not stop.is_set():
                try:
                    result = client.infer("m", {"x": np.array([1.0, 2.0])})
                except PenstockError as error:
                    wrong.append(error)
                    continue
                seen[result.version] += 1
                if result["y"].tolist() != [float(result.version), 2 * float(result.version)]:
                    wrong.append(result)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    old_pids = {answer(running)[2]}
    for number in range(2, 5):
        write_version(folder, number, float(number))
        until(partial(serves, running, str(number)))
        old_pids.add(answer(running)[2])
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert set(seen) == {"1", "2", "3", "4"}
    last = answer(running)[2]
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in old_pids - {last}))  # memory comes back


@pytest.mark.parametrize(
    "more",
    [
        "raise RuntimeError('does not load')",
        "def model(x): raise RuntimeError('fails its warm-up')",
        "import os; os._exit(3)",
    ],
)
def test_version_that_fails_gets_no_traffic_and_leaves_the_old_one_serving(
    server: Factory, tmp_path: Path, more: str
) -> None:
    folder = tmp_path / "models" / "m"
    write_version(folder, 1, 1.0)
    running = server(
        {"m": {"path": str(folder), "inputs": {"x": "f8[n]"}, "outputs": {"y": "f8[n]", "pid": "i8[n]"}}}, poll_s=0.1
    )
    write_version(folder, 2, 2.0, more=more)
    until(lambda: states(running).get("m/2") == "UNAVAILABLE")
    assert answer(running)[:2] == (1.0, "1")
    with pytest.raises(NotReady, match="version 2 is UNAVAILABLE"):
        answer(running, "2")
    write_version(folder, 3, 3.0)
    until(lambda: answer(running)[:2] == (3.0, "3"))


def test_policies_and_labels_choose_versions(server: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    for number in (1, 2, 3):
        write_version(folder, number, float(number))
    running = server(
        {
            "m": {"path": str(folder), "versions": "all", "labels": {"stable": 2, "canary": 3, "gone": 9}},
            "two": {"path": str(folder), "versions": "latest:2"},
            "first": {"path": str(folder), "versions": "1"},
        },
        model_control="none",
    )
    assert answer(running)[:2] == (3.0, "3")
    assert answer(running, "1")[:2] == (1.0, "1")
    assert answer(running, "stable")[:2] == (2.0, "2")
    assert answer(running, "canary")[:2] == (3.0, "3")
    assert answer(running, name="first")[:2] == (1.0, "1")
    with penstock.Client(running.http) as client:
        assert tuple(map(str, client.metadata("two").versions)) == ("2", "3")
        with pytest.raises(NotFound, match="no version 9"):
            client.infer("m", {"x": np.array([1.0])}, version="gone")
        with pytest.raises(NotFound, match="stable"):
            client.infer("m", {"x": np.array([1.0])}, version="unheard")
        with pytest.raises(NotFound, match="no version 1"):
            client.infer("two", {"x": np.array([1.0])}, version="1")
        with pytest.raises(Unsupported, match="explicit"):
            client.load("m")


def test_model_folders_that_come_and_go_are_followed(shared_server: Factory, tmp_path: Path) -> None:
    """Given a folder of models on the command line, not named ones in the file."""
    repository = tmp_path / "repository"
    write_version(repository / "a", 1, 1.0)
    running = shared_server({}, serve=[str(repository)], poll_s=0.1)
    write_version(repository / "b", 1, 5.0)
    until(lambda: states(running).get("b/1") == "READY")
    assert answer(running, name="b")[0] == 5.0
    shutil.rmtree(repository / "a")
    until(lambda: "a/1" not in states(running))
    with pytest.raises(NotFound):
        answer(running, name="a")


def test_explicit_load_and_unload(server: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    write_version(folder, 1, 1.0)
    running = server({"m": str(folder)}, model_control="explicit")
    with penstock.Client(running.http, retries=0) as client:
        with pytest.raises(NotFound):
            client.infer("m", {"x": np.array([1.0])})
        assert [(status.name, status.state) for status in client.index()] == [("m", "")]
        client.load("m")
        pid = answer(running)[2]
        write_version(folder, 2, 2.0)
        client.load("m")
        assert answer(running)[:2] == (2.0, "2")
        write_version(folder, 3, 3.0, more="1 / 0")
        with pytest.raises(LoadError, match="ZeroDivisionError"):
            client.load("m")
        assert answer(running)[:2] == (2.0, "2")
        with pytest.raises(NotFound, match="'other'"):
            client.load("other")
        client.unload("m")
        with pytest.raises(NotFound):
            answer(running)
        until(lambda: not Path(f"/proc/{pid}").exists())


def test_load_with_settings_and_files_of_its_own(server: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    write_version(folder, 1, 1.0)
    running = server({"m": str(folder)}, model_control="explicit")
    digits = (Path(__file__).parents[2] / "examples" / "digits" / "model.onnx").read_bytes()
    with penstock.Client(running.http, retries=0) as client:
        load(running, "m", {"config": json.dumps({"max_batch_size": 0})})
        assert config(running, "m")["max_batch_size"] == 0
        load(
            running,
            "fresh",
            {"config": json.dumps({"max_batch_size": 16}), "file:1/model.onnx": base64.b64encode(digits).decode()},
        )
        assert client.infer("fresh", {"image": np.zeros((1, 64), "f4")}).version == "1"
        for parameters, message in (
            ({"config": "{}", "file:../evil": ""}, "path"),
            ({"config": "{}", "file:/etc/evil": ""}, "path"),
            ({"config": json.dumps({"optimization": {"x": 1}})}, "no effect"),
        ):
            with pytest.raises(InvalidInput, match=message):
                load(running, "m", parameters)
        assert answer(running)[0] == 1.0


def load(running: Any, model: str, parameters: dict[str, object]) -> None:
    connection = http.client.HTTPConnection(running.http.removeprefix("http://"), timeout=30)
    connection.request("POST", f"/v2/repository/models/{model}/load", json.dumps({"parameters": parameters}))
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    if response.status >= 400:
        raise (InvalidInput if response.status == 400 else LoadError)(text)


def test_several_fronts_are_one_server(server: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    write_version(folder, 1, 1.0)
    running = server({"m": str(folder)}, fronts=3, model_control="explicit", load_models=["m"])
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    fronts = [pid for pid in children if "fronts" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(fronts) == 2

    def one_call() -> float:
        with penstock.Client(running.http, retries=0) as client:  # a new connection: the kernel picks a front
            return float(client.infer("m", {"x": np.array([2.0])})["y"][0])

    assert {one_call() for _ in range(40)} == {2.0}
    with penstock.Client(running.http) as client:
        (statistics,) = client.statistics("m")
        assert statistics.inference_count == 40
        write_version(folder, 2, 2.0)
        client.load("m")
    until(lambda: {one_call() for _ in range(20)} == {4.0})
    big = np.random.default_rng(0).random(300_000)
    for _ in range(6):
        with penstock.Client(running.http) as client:
            np.testing.assert_array_equal(client.infer("m", {"x": big})["y"], big * 2)
            with pytest.raises(InvalidInput):
                client.infer("m", {"x": np.zeros(1, "f4")})
    os.kill(int(fronts[0]), signal.SIGKILL)
    until(lambda: not Path(f"/proc/{fronts[0]}").exists())

    def replaced() -> bool:
        now = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        return sum("fronts" in Path(f"/proc/{pid}/cmdline").read_text() for pid in now) == 2

    until(replaced)
    until(lambda: {one_call() for _ in range(20)} == {4.0})
    assert running.stop() == 0


def config(running: Any, model: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection(running.http.removeprefix("http://"), timeout=30)
    connection.request("GET", f"/v2/models/{model}/config")
    answered: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answered
