"""Graphs in servers of their own: what outlasts a restart, calls elsewhere, tries again, cannot load, changes over."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_steps import call, say, steps
from running_server import ServerFactory, start
from served_graphs import GRAPHS, HEAD, MODELS, ask

import penstock
from penstock.core.errors import (
    NotReady,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_routers_learned_outlasts_the_server(tmp_path: Path, number: int) -> None:
    (tmp_path / "learning.yaml").write_text(GRAPHS["learning"])
    state = tmp_path / "learned.json"
    graph = {"path": str(tmp_path / "learning.yaml"), "options": {"state": str(state)}}
    models = {"double": f"{MODELS}:double", "add_one": f"{MODELS}:add_one", "learning": graph}
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
    running = start(tmp_path / "first", models)
    try:
        for reward in (0.25, 0.5):
            told = call(f"{running.http}/v1/graphs/learning/feedback", {"route": "root=1", "reward": reward})
            assert told.json == {"learned": 1}
        deadline = time.monotonic() + 10
        while b"0.75" not in (state.read_bytes() if state.exists() else b"") and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        running.stop(number)
    again = start(tmp_path / "second", models)
    try:
        known = call(f"{again.http}/v1/graphs/learning/routers", method="GET").json["routers"]["root"]
        assert (known[1]["trials"], known[1]["rewards"]) == (2.0, 0.75)
        assert call(f"{again.http}/v1/graphs/learning", {"inputs": {"x": [[5, 5]]}}).json["route"] == "root=1"
    finally:
        again.stop()
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_graph_is_ready_while_its_models_are(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(GRAPHS["chain"])
    (tmp_path / "server").mkdir()
    models = {"double": f"{MODELS}:double", "total": f"{MODELS}:total", "chain": str(tmp_path / "chain.yaml")}
    running = start(tmp_path / "server", models)
    try:
        with penstock.Client(running.http, retries=0) as client:
            assert client.ready("chain")
            os.kill(int(str(client.statistics("total")[0].workers[0]["pid"])), signal.SIGKILL)
            states = set()
            deadline = time.monotonic() + 15
            while (len(states) < 2 or not client.ready("chain")) and time.monotonic() < deadline:
                states.add(client.ready("chain"))
            assert states == {True, False} and ask(client, "chain", [1, 2])["total"] == [6]
    finally:
        running.stop()


def test_calls_elsewhere_carry_trace_deadline_and_the_key_only_to_endpoints(
    shared_server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with steps() as endpoints, steps() as other:
        monkeypatch.setenv("PENSTOCK_ENDPOINTS_URL", endpoints.url)
        monkeypatch.setenv("PENSTOCK_ENDPOINTS_KEY", "the platform's key")
        for behind in (endpoints, other):
            for model, output, shape in (("double", "y", [1, 2]), ("total", "total", [1])):
                tensor = {
                    "name": output,
                    "datatype": "FP64",
                    "shape": shape,
                    "data": [6.0] * (1 if shape == [1] else 2),
                }
                behind.answers[f"/v2/models/{model}/infer"] = say({"outputs": [tensor]})
        (tmp_path / "far.yaml").write_text(
            HEAD + "sequence:\n  - {endpoint: double, inputs: {x: x}}\n"
            f"  - {{name: other, url: '{other.url}/v2/models/total', inputs: {{x: y}}}}\n"
            f"  - {{name: near, url: '{endpoints.url}/v2/models/near', inputs: {{x: y}}, dependency: soft}}\n"
        )
        running = shared_server({"far": str(tmp_path / "far.yaml"), "Pipeline": f"{MODELS}:Pipeline"})
        headers = {"traceparent": parent, "Penstock-Timeout-Ms": "5000", "Content-Type": "application/json"}
        tensor = {"name": "x", "datatype": "FP64", "shape": [1, 2], "data": [1, 2]}
        for model in ("far", "Pipeline"):
            answer = call(f"{running.http}/v2/models/{model}/infer", {"inputs": [tensor]}, headers=headers)
            assert answer.status == 200, answer.body
        near = endpoints.at("/v2/models/near/infer")
        assert len(near) == 1 and "authorization" not in near[0].headers, "the same address, but a graph's own choice"
        endpoints.asked.remove(near[0])
        asked = [*endpoints.asked, *other.asked]
        assert [each.path for each in asked] == [
            f"/v2/models/{m}/infer" for m in ("double", "double", "total", "total")
        ]
        for each in asked:
            assert each.headers["traceparent"][:35] == parent[:35]
            assert 0 < float(each.headers["penstock-timeout-ms"]) <= 5000
        assert {each.headers["authorization"] for each in endpoints.asked} == {"Bearer the platform's key"}
        assert all("authorization" not in each.headers for each in other.asked)


def test_a_step_is_tried_again_as_often_as_it_says(shared_server: ServerFactory, tmp_path: Path) -> None:
    replies = [say({"error": "busy"}, 503), say({"error": "busy"}, 503), say({"outputs": [
        {"name": "y", "datatype": "FP64", "shape": [1], "data": [7.0]}]})]  # fmt: skip
    with steps() as behind:
        behind.answers["/v2/models/m/infer"] = lambda body: replies.pop(0)
        (tmp_path / "retry.yaml").write_text(
            f"kind: Graph\nsequence: [{{name: m, url: '{behind.url}/v2/models/m', retries: 2}}]\n"
        )
        running = shared_server({"retry": str(tmp_path / "retry.yaml")})
        with penstock.Client(running.http, retries=0) as client:
            assert client.infer("retry", {"x": np.zeros(1)})["y"] == [7.0]
            assert len(behind.asked) == 3
            behind.answers["/v2/models/m/infer"] = say({"error": "busy"}, 503)
            with pytest.raises(NotReady, match=r"step 'm'.*busy"):
                client.infer("retry", {"x": np.zeros(1)})
            assert len(behind.asked) == 6


BROKEN = [
    ({"lost": "sequence: [{model: gone}]"}, "needs the model 'gone', which this server does not have"),
    ({"a": "sequence: [{model: b}]", "b": "sequence: [{model: a}]"}, "ask each other in a circle"),
    ({"a": "sequence: [{model: a}]"}, "a → a"),
    ({"wrong": 'inputs: {x: "f4[n, 2]"}\nsequence: [{model: double}]'}, "its input 'x' is FP64, and 'x' is FP32"),
    ({"odd": "sequence: [{model: double}]"}, "no option 'colour'"),
    ({"away": "sequence: [{model: double, version: 9}]"}, "has no version 9"),
]


@pytest.mark.parametrize(("graphs", "why"), BROKEN)
def test_a_graph_that_cannot_work_does_not_load(graphs: dict[str, str], why: str, tmp_path: Path) -> None:
    models: dict[str, Any] = {"double": f"{MODELS}:double"}
    for name, text in graphs.items():
        (tmp_path / f"{name}.yaml").write_text(f"kind: Graph\n{text}\n")
        models[name] = {"path": str(tmp_path / f"{name}.yaml"), "options": {"colour": "blue"} if name == "odd" else {}}
    (tmp_path / "server").mkdir()
    with pytest.raises(RuntimeError) as caught:
        start(tmp_path / "server", models).stop()
    assert why in str(caught.value)


def test_a_new_version_of_a_graph_takes_over(tmp_path: Path) -> None:
    folder, graph = tmp_path / "server", tmp_path / "graphs" / "g"
    folder.mkdir()
    (graph / "1").mkdir(parents=True)
    (graph / "1" / "graph.yaml").write_text(HEAD + "sequence: [{model: double}]\n")
    running = start(
        folder,
        {"double": f"{MODELS}:double", "add_one": f"{MODELS}:add_one", "g": str(graph)},
        model_control="poll",
        poll_s=0.1,
    )
    try:
        with penstock.Client(running.http, retries=0) as client:
            assert ask(client, "g", [1, 1])["y"].tolist() == [[2, 2]]
            (graph / ".2").mkdir()
            (graph / ".2" / "graph.yaml").write_text(HEAD + "sequence: [{model: add_one}]\n")
            (graph / ".2").rename(graph / "2")
            deadline = time.monotonic() + 20
            while ask(client, "g", [5, 5]).version != "2" and time.monotonic() < deadline:
                time.sleep(0.02)
            assert ask(client, "g", [5, 5])["y"].tolist() == [[6, 6]]
    finally:
        running.stop()


def test_graphs_answer_behind_several_fronts(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(GRAPHS["chain"])
    folder = tmp_path / "server"
    folder.mkdir()
    models = {"double": f"{MODELS}:double", "total": f"{MODELS}:total", "chain": str(tmp_path / "chain.yaml")}
    running = start(folder, models, fronts=2)
    try:
        for _ in range(8):  # each a connection of its own, which either front may take
            answer = call(
                f"{running.http}/v1/graphs/chain", {"inputs": {"x": [[1, 2]]}}, headers={"Penstock-Timing": "1"}
            )
            assert answer.json == {"outputs": {"total": [6.0]}} and "step-total" in answer.headers["server-timing"]
    finally:
        running.stop()
