"""Graphs of tensors in a real server: what they give, decide, teach and refuse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_steps import call
from running_server import RunningServer, ServerFactory
from served_graphs import GRAPHS, HEAD, MODELS, ask

import penstock
from penstock.core.errors import (
    DeadlineExceeded,
    InvalidInput,
    PenstockError,
    ServableError,
)


@pytest.fixture(scope="module")
def server(shared_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    folder = tmp_path_factory.mktemp("graphs")
    models: dict[str, Any] = {
        name: f"{MODELS}:{name}" for name in ("double", "add_one", "total", "fail_above_100", "sleepy")
    }
    for name in ("small_a", "small_b"):
        models[name] = {"path": f"{MODELS}:slow", "max_queue": 3}
    for name, text in GRAPHS.items():
        (folder / f"{name}.yaml").write_text(text)
        models[name] = str(folder / f"{name}.yaml")
    return shared_server(models)


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[penstock.Client]:
    with penstock.Client(server.http, retries=0, timing=True) as client:
        yield client


def test_a_sequence_gives_its_declared_outputs(client: penstock.Client) -> None:
    assert ask(client, "chain", [1, 2], [3, 4]).outputs.keys() == {"total"}
    np.testing.assert_array_equal(ask(client, "chain", [1, 2], [3, 4])["total"], [6, 14])


def test_a_graph_is_a_model_with_metadata_statistics_and_metrics(client: penstock.Client) -> None:
    metadata = client.metadata("chain")
    assert [(spec.name, spec.datatype) for spec in metadata.inputs] == [("x", "FP64")]
    before = client.statistics("chain")[0].success.count
    ask(client, "chain", [1, 2])
    assert client.statistics("chain")[0].success.count == before + 1
    assert 'model="chain"' in client.metrics()


def test_the_answer_says_how_long_each_step_took(server: RunningServer) -> None:
    answer = call(f"{server.http}/v1/graphs/chain", {"inputs": {"x": [[1, 2]]}}, headers={"Penstock-Timing": "1"})
    assert answer.json == {"outputs": {"total": [6.0]}}
    assert (
        "step-double;dur=" in answer.headers["server-timing"] and "step-total;dur=" in answer.headers["server-timing"]
    )


def test_a_switch_decides_on_the_data(client: penstock.Client) -> None:
    np.testing.assert_array_equal(ask(client, "choice", [11, 1])["y"], [[22, 2]])
    np.testing.assert_array_equal(ask(client, "choice", [-1, 1])["y"], [[0, 2]])
    with pytest.raises(InvalidInput, match="none of its conditions holds"):
        ask(client, "choice", [1, 1])


def test_an_ensemble_averages_what_its_steps_gave_and_leaves_out_a_soft_one_that_failed(
    client: penstock.Client,
) -> None:
    np.testing.assert_allclose(ask(client, "vote", [3, 3])["y"], [[(6 + 4 + 3) / 3] * 2])
    np.testing.assert_allclose(ask(client, "vote", [300, 3])["y"], [[(600 + 301) / 2, (6 + 4) / 2]])


def test_what_is_before_and_after_a_step_changes_its_data(client: penstock.Client) -> None:
    np.testing.assert_array_equal(ask(client, "changed", [1, 2])["total"], [10])


def test_p16c_a_failure_names_the_step(client: penstock.Client) -> None:
    with pytest.raises(ServableError, match=r"step 'picky' \(model fail_above_100\): .*too much for me"):
        ask(client, "failing", [60, 1])


def test_a_step_has_its_own_time_and_all_share_the_callers(client: penstock.Client) -> None:
    with pytest.raises(DeadlineExceeded, match="step 'nap'"):
        ask(client, "timed", [0.5, 0])
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        ask(client, "naps", [0.4, 0], timeout_s=0.5)
    assert time.monotonic() - began < 2.0


def test_a_request_that_does_not_fit_the_graph_is_refused_at_its_door(client: penstock.Client) -> None:
    with pytest.raises(InvalidInput, match=r"input 'x' has shape"):
        client.infer("chain", {"x": np.zeros((1, 3))})


def test_rewards_teach_a_router_and_fractions_are_kept(server: RunningServer, client: penstock.Client) -> None:
    url = f"{server.http}/v1/graphs/learning"
    answer = call(url, {"inputs": {"x": [[5, 5]]}})
    assert answer.json == {"outputs": {"y": [[10.0, 10.0]]}, "route": "root=0"}
    assert ask(client, "learning", [5, 5]).parameters["route"] == "root=0"
    rewards = [
        {"route": "root=0", "reward": 0.3},
        {"route": "root=0", "reward": 0.35},
        {"route": "root=1", "reward": 0.9},
    ]
    assert call(f"{url}/feedback", {"rewards": rewards}).json == {"learned": 3}
    state = call(f"{url}/routers", method="GET").json["routers"]["root"]
    assert [(way["trials"], round(way["rewards"], 12)) for way in state] == [(2.0, 0.65), (1.0, 0.9)]
    assert call(url, {"inputs": {"x": [[5, 5]]}}).json["route"] == "root=1"
    for wrong in (
        {"route": "root=9", "reward": 0.1},
        {"route": "root=0", "reward": 1.5},
        {"route": "x", "reward": 1},
        {},
    ):
        assert call(f"{url}/feedback", wrong).status == 400
    assert call(f"{server.http}/v1/graphs/double", {}).status == 404
    assert {"name": "learning", "level": "tensors"} in call(f"{server.http}/v1/graphs", method="GET").json["graphs"]


async def test_p16c_two_hundred_at_once_through_small_queues_are_all_answered(
    server: RunningServer, figure: Callable[..., None]
) -> None:
    async with penstock.AsyncClient(server.http, retries=0, timeout_s=40) as client:

        async def one(number: int) -> None:
            found = await client.infer("fan", {"x": np.array([[number, 0.5]])})
            for name in ("a", "b", "c"):
                np.testing.assert_array_equal(found[name], [[number, 0.5]])

        began = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(200)))
    name = "200 requests at once through a fan-out of models with queues of 3: all answered after"
    figure("P16c", name, time.monotonic() - began, "s", goal="all")


async def test_steps_stop_when_the_caller_leaves(server: RunningServer) -> None:
    async with penstock.AsyncClient(server.http, retries=0) as client:
        before = (await client.statistics("sleepy"))[0].inference_count
        async with asyncio.timeout(0.15):
            with contextlib.suppress(asyncio.CancelledError):
                await client.infer("naps", {"x": np.array([[0.3, 0.0]])})
        deadline = time.monotonic() + 10
        while (await client.statistics("naps"))[0].in_flight and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.4)  # longer than the first nap, after which the second would begin
        assert (await client.statistics("sleepy"))[0].inference_count - before <= 1


def test_steps_may_be_other_endpoints_with_trace_key_and_deadline(
    shared_server: ServerFactory, server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_ENDPOINTS_URL", server.http)
    graph = HEAD + (
        f"sequence:\n  - endpoint: double\n  - {{name: sum, url: '{server.http}/v2/models/total', inputs: {{x: y}}}}\n"
        "  - {endpoint: sleepy, inputs: {x: x}, outputs: {y: z}}\n"
    )
    (tmp_path / "far.yaml").write_text(graph)
    far = shared_server({"far": str(tmp_path / "far.yaml"), "Pipeline": f"{MODELS}:Pipeline"})
    with penstock.Client(far.http, retries=0) as client:
        found = client.infer("far", {"x": np.array([[0.0, 0.1]])})
        np.testing.assert_allclose(found["total"], [0.2])
        late = call(
            f"{far.http}/v1/graphs/far", {"inputs": {"x": [[0.0, 3.0]]}}, headers={"Penstock-Timeout-Ms": "500"}
        )
        assert late.status == 504 and "step 'sleepy'" in late.json["error"]
        with pytest.raises(PenstockError):
            client.infer("far", {"x": np.zeros((1, 3))})
        np.testing.assert_allclose(client.infer("Pipeline", {"x": np.array([[1.0, 2.0]])})["total"], [6.0])
        with pytest.raises(InvalidInput, match="endpoint 'double'"):
            client.infer("Pipeline", {"x": np.array([[1.0, 2.0, 3.0]])})


def test_the_command_line_checks_with_a_servers_tensors(server: RunningServer, tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "g.yaml").write_text('kind: Graph\ninputs: {x: "f4[n, 2]"}\nsequence: [{model: double}]\n')
    command = [sys.executable, "-m", "penstock.cli", "graph"]
    offline = subprocess.run([*command, "check", str(tmp_path / "g.yaml")], capture_output=True, text=True)
    assert (offline.returncode, offline.stdout[:2]) == (0, "ok")
    asked = subprocess.run(
        [*command, "check", str(tmp_path / "g.yaml"), "--url", server.http], capture_output=True, text=True
    )
    assert asked.returncode == 1 and "its input 'x' is FP64, and 'x' is FP32" in asked.stdout
    shown = subprocess.run(
        [*command, "show", str(tmp_path / "g.yaml"), "--output", str(tmp_path / "g.svg")],
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0 and (tmp_path / "g.svg").read_text().startswith("<svg ")
    assert json.dumps(shown.stdout)
