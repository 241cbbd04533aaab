"""Graphs of tensors through a real server: our own files, Triton's ensembles, and graphs in Python."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from graph_steps import call, say, steps
from running_server import RunningServer, ServerFactory, start

import penstock
from penstock.core.errors import (
    DeadlineExceeded,
    InvalidInput,
    LoadError,
    NotFound,
    NotReady,
    PenstockError,
    ServableError,
)

MODELS = Path(__file__).parents[1] / "graph_models.py"
DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "model.onnx"
HEAD = 'kind: Graph\ninputs: {x: "f8[n, 2]"}\n'

GRAPHS = {
    "chain": HEAD + 'outputs: {total: "f8[n]"}\n' + """
sequence:
  - {model: double, outputs: {y: doubled}}
  - {model: total, inputs: {x: doubled}}
""",
    "choice": HEAD + """
switch:
  - {when: max(x) > 10, model: double}
  - {when: min(x) < 0, model: add_one, name: plus}
""",
    "vote": HEAD + """
ensemble:
  - {model: double}
  - {model: add_one}
  - {model: fail_above_100, dependency: soft}
combine: average
""",
    "failing": HEAD + """
sequence:
  - {model: double, outputs: {y: x}}
  - {name: picky, model: fail_above_100}
""",
    "timed": HEAD + "sequence: [{name: nap, model: sleepy, timeout_s: 0.2}]\n",
    "naps": HEAD + "sequence: [{name: nap, model: sleepy}, {name: again, model: sleepy, inputs: {x: y}}]\n",
    "learning": HEAD + """
router: [{model: double}, {model: add_one}]
policy: epsilon-greedy
epsilon: 0.0
seed: 7
""",
    "changed": HEAD + """
sequence:
  - model: double
    before: {model: add_one, outputs: {y: x}}
    after: {model: total, inputs: {x: y}}
""",
    "fan": HEAD + "timeout_s: 30\n" + """
ensemble:
  - {model: small_a, outputs: {y: a}}
  - {model: small_b, outputs: {y: b}}
  - sequence: [{model: small_a, name: again, outputs: {y: c}}, {model: small_b, name: last, inputs: {x: c}, outputs: {y: c}}]
""",
}  # fmt: skip


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


def ask(client: penstock.Client, graph: str, *rows: list[float], **more: Any) -> penstock.client.Result:
    return client.infer(graph, {"x": np.array(rows, np.float64)}, **more)


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


# --- other endpoints ---


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


# --- Triton ---

ENSEMBLE = """
name: "pipeline"
platform: "ensemble"
max_batch_size: 64
input [ { name: "PIXELS" data_type: TYPE_FP32 dims: [ 64 ] } ]
output [
  { name: "LABEL" data_type: TYPE_INT64 dims: [ ] },
  { name: "SURE" data_type: TYPE_FP32 dims: [ 10 ] }
]
ensemble_scheduling {
  step [
    {
      model_name: "digits" model_version: -1
      input_map { key: "image" value: "scaled" }
      output_map { key: "label" value: "LABEL" } output_map { key: "probabilities" value: "SURE" }
    },
    {
      model_name: "scale" model_version: -1
      input_map { key: "pixels" value: "PIXELS" }
      output_map { key: "image" value: "scaled" }
    }
  ]
}
"""


def repository(folder: Path) -> Path:
    """A Triton repository: a model that scales pixels to 0 … 16, the digits, and their ensemble."""
    import onnx
    from onnx import TensorProto, helper

    for name in ("scale", "digits", "pipeline"):
        (folder / name / "1").mkdir(parents=True)
    pixels, image = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 64]) for name in ("pixels", "image"))
    factor = helper.make_tensor("factor", TensorProto.FLOAT, [1], [16.0])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["pixels", "factor"], ["image"])], "scale", [pixels], [image], [factor]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "scale" / "1" / "model.onnx")
    (folder / "digits" / "1" / "model.onnx").write_bytes(DIGITS.read_bytes())
    (folder / "pipeline" / "config.pbtxt").write_text(ENSEMBLE)
    return folder


def test_a_triton_ensemble_answers_as_its_models_one_after_the_other(server: RunningServer, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    running = start(folder, {}, [str(repository(tmp_path / "repository"))])
    try:
        pixels = np.random.default_rng(0).random((70, 64), np.float32)
        with triton.InferenceServerClient(running.http.removeprefix("http://")) as client:
            sent = triton.InferInput("PIXELS", pixels.shape, "FP32")
            sent.set_data_from_numpy(pixels)
            whole = client.infer("pipeline", [sent])
            assert client.get_model_metadata("pipeline")["platform"] == "ensemble"
            assert client.get_model_config("pipeline")["max_batch_size"] > 0
        with penstock.Client(running.http) as own:
            alone = own.infer("digits", {"image": pixels * 16})
        np.testing.assert_array_equal(whole.as_numpy("LABEL"), alone["label"])
        np.testing.assert_allclose(whole.as_numpy("SURE"), alone["probabilities"], rtol=1e-6)
    finally:
        running.stop()


def test_loading_an_ensemble_loads_its_models(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    running = start(folder, {}, [str(repository(tmp_path / "repository"))], model_control="explicit")
    try:
        with penstock.Client(running.http, retries=0) as client:
            assert client.models() == []
            client.load("pipeline")
            assert client.models() == ["digits", "pipeline", "scale"]
            assert client.infer("pipeline", {"PIXELS": np.zeros((1, 64), np.float32)})["LABEL"].shape == (1,)
            client.unload("pipeline")
            deadline = time.monotonic() + 20
            while client.models() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert client.models() == []
            with pytest.raises((NotFound, NotReady, LoadError)):
                client.infer("pipeline", {"PIXELS": np.zeros((1, 64), np.float32)})
    finally:
        running.stop()


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
