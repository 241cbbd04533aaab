"""KServe's InferenceGraph behaves as its router's code does, one rule a test, through a real server and real steps."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graph_steps import Steps, call, say, steps
from running_server import RunningServer, ServerFactory, start

MODELS = Path(__file__).parents[1] / "graph_models.py"

NODES: dict[str, dict[str, Any]] = {
    "sequence": {
        "root": {
            "routerType": "Sequence",
            "steps": [
                {"serviceUrl": "URL/first", "name": "first"},
                {"serviceUrl": "URL/second", "name": "second", "data": "$response"},
            ],
        }
    },
    "requests": {
        "root": {
            "routerType": "Sequence",
            "steps": [{"serviceUrl": "URL/first"}, {"serviceUrl": "URL/second", "data": "$request"}],
        }
    },
    "condition": {
        "root": {
            "routerType": "Sequence",
            "steps": [
                {"serviceUrl": "URL/first"},
                {"serviceUrl": "URL/second", "data": "$response", "condition": "predictions.#(label==\"dog\")"},
            ],
        }
    },
    "hard": {
        "root": {
            "routerType": "Sequence",
            "steps": [{"serviceUrl": "URL/first", "dependency": "Hard"}, {"serviceUrl": "URL/second", "data": "$response"}],
        }
    },
    "mapped": {
        "root": {
            "routerType": "Sequence",
            "steps": [
                {"serviceUrl": "URL/first"},
                {"serviceUrl": "URL/second", "data": "$response", "mapPredictionsToInstances": True},
            ],
        }
    },
    "switch": {
        "root": {
            "routerType": "Switch",
            "steps": [
                {"serviceUrl": "URL/first", "condition": "[@this].#(target==\"a\")"},
                {"nodeName": "inner", "condition": "instances.#"},
            ],
        },
        "inner": {"routerType": "Sequence", "steps": [{"serviceUrl": "URL/second"}]},
    },
    "ensemble": {
        "root": {
            "routerType": "Ensemble",
            "steps": [{"serviceUrl": "URL/first", "name": "one"}, {"serviceUrl": "URL/second"}],
        }
    },
    "hard-ensemble": {
        "root": {
            "routerType": "Ensemble",
            "steps": [
                {"serviceUrl": "URL/first", "name": "one"},
                {"serviceUrl": "URL/second", "name": "two", "dependency": "Hard"},
                {"serviceUrl": "URL/third", "name": "three", "dependency": "Hard"},
            ],
        }
    },
    "splitter": {
        "root": {
            "routerType": "Splitter",
            "steps": [{"serviceUrl": "URL/first", "weight": 80}, {"serviceUrl": "URL/second", "weight": 20}],
        }
    },
    "service": {"root": {"routerType": "Sequence", "steps": [{"serviceName": "double", "dependency": "Hard"}]}},
    "nested": {"root": {"routerType": "Sequence", "steps": [{"serviceName": "sequence"}]}},
    "timed": {"root": {"routerType": "Sequence", "steps": [{"serviceUrl": "URL/slow", "name": "slow"}]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def behind() -> Iterator[Steps]:
    with steps() as found:
        yield found


@pytest.fixture(scope="module")
def graphs(shared_server: ServerFactory, behind: Steps, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    folder = tmp_path_factory.mktemp("graphs")
    models: dict[str, Any] = {"double": {"path": f"{MODELS}:double"}}
    for name, nodes in NODES.items():
        models[name] = str(write(folder / f"{name}.yaml", name, nodes, behind.url))
    return shared_server(models)


def write(path: Path, name: str, nodes: dict[str, Any], url: str) -> Path:
    """A graph's file, in the JSON that YAML takes."""
    graph = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {
            "name": name,
            "annotations": {"penstock/propagate-headers": "x-user.*"} if name == "sequence" else {},
        },
        "spec": {"nodes": nodes, **({"timeout": 1} if name == "timed" else {})},
    }
    path.write_text(json.dumps(graph, indent=1).replace("URL", url))
    return path


@pytest.fixture(autouse=True)
def fresh(behind: Steps) -> None:
    behind.asked.clear()
    behind.delays_s.clear()
    behind.answers.clear()
    behind.answers.update(
        {
            "/first": say({"predictions": [{"label": "cat"}]}),
            "/second": say({"predictions": [2]}),
            "/third": say({"third": 3}),
        }
    )


def ask(graphs: RunningServer, name: str, body: object, **headers: str) -> tuple[int, Any]:
    answer = call(f"{graphs.http}/v1/graphs/{name}", body, headers=headers)
    return answer.status, json.loads(answer.body)


def test_a_sequence_passes_the_response_on_and_answers_with_the_last(graphs: RunningServer, behind: Steps) -> None:
    assert ask(graphs, "sequence", {"instances": [1]}) == (200, {"predictions": [2]})
    assert json.loads(behind.at("/first")[0].body) == {"instances": [1]}
    assert json.loads(behind.at("/second")[0].body) == {"predictions": [{"label": "cat"}]}


def test_a_step_with_request_data_gets_the_request(graphs: RunningServer, behind: Steps) -> None:
    assert ask(graphs, "requests", {"instances": [1]})[0] == 200
    assert json.loads(behind.at("/second")[0].body) == {"instances": [1]}


def test_an_unmet_condition_ends_a_sequence_with_the_response_before_it_and_200(
    graphs: RunningServer, behind: Steps
) -> None:
    assert ask(graphs, "condition", {}) == (200, {"predictions": [{"label": "cat"}]})
    assert behind.at("/second") == []
    behind.answers["/first"] = say({"predictions": [{"label": "dog"}]})
    assert ask(graphs, "condition", {}) == (200, {"predictions": [2]})


def test_a_condition_on_a_body_that_is_no_json_is_500(graphs: RunningServer, behind: Steps) -> None:
    behind.answers["/first"] = (200, b"no json")
    status, document = ask(graphs, "condition", {})
    assert status == 500 and document["error"] == "Failed to process request"


def test_a_hard_step_that_fails_ends_a_sequence_with_its_body_and_code(graphs: RunningServer, behind: Steps) -> None:
    behind.answers["/first"] = say({"why": "broken"}, 418)
    assert ask(graphs, "hard", {}) == (418, {"why": "broken"})
    assert behind.at("/second") == []


def test_a_soft_step_that_fails_goes_on_with_its_body(graphs: RunningServer, behind: Steps) -> None:
    behind.answers["/first"] = say({"why": "broken"}, 500)
    assert ask(graphs, "sequence", {}) == (200, {"predictions": [2]})
    assert json.loads(behind.at("/second")[0].body) == {"why": "broken"}


def test_predictions_become_instances_where_the_step_says_so(graphs: RunningServer, behind: Steps) -> None:
    ask(graphs, "mapped", {})
    assert json.loads(behind.at("/second")[0].body) == {"instances": [{"label": "cat"}]}


def test_a_switch_takes_the_first_step_whose_condition_the_request_meets(graphs: RunningServer, behind: Steps) -> None:
    assert ask(graphs, "switch", {"target": "a", "instances": [1]}) == (200, {"predictions": [{"label": "cat"}]})
    assert ask(graphs, "switch", {"target": "b", "instances": [1]}) == (200, {"predictions": [2]})


@pytest.mark.parametrize("body", [{"target": "b"}, b"no json"])
def test_an_unmatched_switch_is_404_with_kserves_body(graphs: RunningServer, body: object) -> None:
    assert ask(graphs, "switch", body) == (
        404,
        {"error": "Failed to process request", "cause": "None of the routes matched with the switch condition"},
    )


def test_a_switch_answers_with_the_steps_own_code(graphs: RunningServer, behind: Steps) -> None:
    behind.answers["/first"] = say({"no": 1}, 422)
    assert ask(graphs, "switch", {"target": "a"}) == (422, {"no": 1})


def test_an_ensemble_answers_an_object_by_name_or_index(graphs: RunningServer) -> None:
    assert ask(graphs, "ensemble", {}) == (200, {"one": {"predictions": [{"label": "cat"}]}, "1": {"predictions": [2]}})


def test_an_ensemble_of_anything_but_objects_is_500(graphs: RunningServer, behind: Steps) -> None:
    behind.answers["/second"] = say([1, 2])
    status, document = ask(graphs, "ensemble", {})
    assert status == 500 and "JSON objects" in document["cause"]


def test_the_first_hard_step_that_failed_wins_an_ensemble(graphs: RunningServer, behind: Steps) -> None:
    behind.answers.update(
        {"/first": say({"soft": 1}, 500), "/second": say({"two": 2}, 503), "/third": say({"three": 3}, 400)}
    )
    assert ask(graphs, "hard-ensemble", {}) == (503, {"two": 2})
    behind.answers.update({"/second": say({"two": 2}), "/third": say({"three": 3})})
    assert ask(graphs, "hard-ensemble", {}) == (200, {"one": {"soft": 1}, "two": {"two": 2}, "three": {"three": 3}})


def test_a_splitter_splits_by_weight(graphs: RunningServer, behind: Steps) -> None:
    for _ in range(300):
        ask(graphs, "splitter", {})
    counts = Counter(each.path for each in behind.asked)
    assert counts["/first"] + counts["/second"] == 300
    assert 200 < counts["/first"] < 275  # 240 expected, 5 standard deviations of 6.9


def test_a_service_of_the_same_server_is_asked_without_http(graphs: RunningServer) -> None:
    assert ask(graphs, "service", {"instances": [[1, 2]]}) == (200, {"predictions": [[2.0, 4.0]]})
    status, document = ask(graphs, "service", {"instances": [[1, 2, 3]]})
    assert status == 400 and "error" in document


def test_a_graph_may_be_a_service_of_another(graphs: RunningServer) -> None:
    assert ask(graphs, "nested", {}) == (200, {"predictions": [2]})


def test_headers_go_on_only_where_listed(graphs: RunningServer, behind: Steps) -> None:
    ask(graphs, "sequence", {}, **{"X-User-Id": "7", "X-Other": "no", "Authorization": "Bearer k"})
    ask(graphs, "requests", {}, **{"X-User-Id": "7"})
    assert [each.headers.get("x-user-id") for each in behind.asked] == ["7", "7", None, None]
    assert all("x-other" not in each.headers and "authorization" not in each.headers for each in behind.asked)


def test_a_client_that_writes_the_headers_itself_has_no_others_passed_on(graphs: RunningServer, behind: Steps) -> None:
    headers = {"X-User-Id": "7", "Authorization": "Bearer k", "Host": "elsewhere", "Transfer-Encoding": "chunked"}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1], "data": [json.dumps(value)]}
        for name, value in (("body", {}), ("headers", headers))
    ]
    assert call(f"{graphs.http}/v2/models/sequence/infer", {"inputs": inputs}).status == 200
    assert [each.headers.get("x-user-id") for each in behind.asked] == ["7", "7"]
    assert [each.headers["host"] for each in behind.asked] == [behind.url.removeprefix("http://")] * 2
    assert not any({"authorization", "transfer-encoding"} & set(each.headers) for each in behind.asked)


def test_steps_get_the_trace_and_what_is_left_of_the_deadline(graphs: RunningServer, behind: Steps) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    ask(graphs, "sequence", {}, traceparent=parent, **{"Penstock-Timeout-Ms": "5000"})
    assert [each.headers["traceparent"][:35] for each in behind.asked] == [parent[:35]] * 2
    assert all(0 < int(each.headers["penstock-timeout-ms"]) <= 5000 for each in behind.asked)


def test_spec_timeout_bounds_the_whole_graph_and_the_failure_names_the_step(
    graphs: RunningServer, behind: Steps
) -> None:
    behind.answers["/slow"], behind.delays_s["/slow"] = say({}), 8.0
    status, document = ask(graphs, "timed", {})
    assert status == 504
    assert "slow" in document["error"] or "deadline" in document["error"]


def test_a_step_that_cannot_be_reached_is_500_and_named(shared_server: ServerFactory, tmp_path: Path) -> None:
    nodes = {"root": {"routerType": "Sequence", "steps": [{"serviceUrl": "URL/x", "name": "gone"}]}}
    path = write(tmp_path / "gone.yaml", "gone", nodes, "http://127.0.0.1:9")
    alone = shared_server({"gone": str(path)})
    answer = call(f"{alone.http}/", {})  # the only KServe graph answers here too
    assert answer.status == 500 and "step 'gone'" in json.loads(answer.body)["cause"]


def test_post_to_the_root_needs_one_graph(graphs: RunningServer) -> None:
    answer = call(f"{graphs.http}/", {})
    assert answer.status == 404 and "/v1/graphs/NAME" in json.loads(answer.body)["error"]


def test_graphs_that_are_services_of_each_other_are_refused(tmp_path: Path) -> None:
    """They would wait for each other while they load, and once one were replaced, ask each other without an end."""
    folder = tmp_path / "server"
    folder.mkdir()
    models = {
        name: str(write(tmp_path / f"{name}.yaml", name, _asking(other), ""))
        for name, other in (("one", "two"), ("two", "one"))
    }
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"one → two → one ask each other in a circle"):
        start(folder, models).stop()
    assert time.monotonic() - began < 60, "found at once, not when load_timeout_s is over"


def _asking(service: str) -> dict[str, Any]:
    return {"root": {"routerType": "Sequence", "steps": [{"serviceName": service}]}}
