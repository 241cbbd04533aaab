"""Seldon Core 1 graphs: messages through units, routes in every answer, rewards down the way that it came."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graph_steps import Steps, call, say, steps
from running_server import RunningServer, ServerFactory

MODELS = Path(__file__).parents[1] / "graph_models.py"
API = "/api/v1.0/predictions"


def model(name: str, *children: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "MODEL", "children": list(children), **more}


def away(name: str, kind: str, host: tuple[str, int], *children: dict[str, Any]) -> dict[str, Any]:
    endpoint = {"service_host": host[0], "service_port": host[1], "type": "REST"}
    return {"name": name, "type": kind, "endpoint": endpoint, "children": list(children)}


def graphs(host: tuple[str, int]) -> dict[str, list[dict[str, Any]]]:
    double, add_one = model("double"), model("add_one")
    bandit = {
        "name": "eg", "type": "ROUTER", "implementation": "EPSILON_GREEDY", "children": [double, add_one],
        "parameters": [{"name": "epsilon", "value": "0", "type": "FLOAT"}, {"name": "n_branches", "value": "2", "type": "INT"}],
    }  # fmt: skip
    return {
        "single": [{"graph": model("double", implementation="SKLEARN_SERVER", modelUri="gs://x/y")}],
        "simple": [{"graph": {"name": "stub", "implementation": "SIMPLE_MODEL"}}],
        "chain": [{"graph": {"name": "add_one", "type": "TRANSFORMER", "children": [double]}}],
        "average": [{"graph": {"name": "c", "implementation": "AVERAGE_COMBINER", "type": "COMBINER", "children": [double, add_one]}}],
        "abtest": [{"graph": {"name": "ab", "implementation": "RANDOM_ABTEST", "children": [double, add_one],
                              "parameters": [{"name": "ratioA", "value": "0.75", "type": "FLOAT"}]}}],
        "bandit": [{"graph": bandit}],
        "thompson": [{"graph": {**bandit, "implementation": "", "name": "ts"},
                      "componentSpecs": [{"spec": {"containers": [{"name": "ts", "image": "seldonio/mab_thompson_sampling:1"}]}}]}],
        "away": [{"graph": away("route", "ROUTER", host, double, away("other", "MODEL", host))}],
        "after": [{"graph": away("last", "OUTPUT_TRANSFORMER", host, double)}],
        "joined": [{"graph": away("join", "COMBINER", host, double, add_one)}],
        "predictors": [{"name": "a", "traffic": 75, "graph": double}, {"name": "b", "traffic": 25, "graph": double},
                       {"name": "s", "shadow": True, "graph": double}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def behind() -> Iterator[Steps]:
    with steps() as found:
        yield found


@pytest.fixture(scope="module")
def server(shared_server: ServerFactory, behind: Steps, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    folder = tmp_path_factory.mktemp("graphs")
    host, _, port = behind.url.removeprefix("http://").partition(":")
    models: dict[str, Any] = {name: f"{MODELS}:{name}" for name in ("double", "add_one")}
    for name, predictors in graphs((host, int(port))).items():
        document = {
            "apiVersion": "machinelearning.seldon.io/v1",
            "kind": "SeldonDeployment",
            "metadata": {
                "name": name,
                "annotations": {"penstock/propagate-headers": "x-user.*"} if name == "after" else {},
            },
            "spec": {"predictors": [{"name": "default", **each} for each in predictors]},
        }
        (folder / f"{name}.json").write_text(json.dumps(document))
        models[name] = str(folder / f"{name}.json")
    return shared_server(models)


@pytest.fixture(autouse=True)
def fresh(behind: Steps) -> None:
    behind.asked.clear()
    behind.answers.clear()


def ask(server: RunningServer, graph: str, message: object, path: str = API) -> Any:
    return call(f"{server.http}/seldon/ns/{graph}{path}", message).json


ROWS = {"data": {"names": ["a", "b"], "ndarray": [[1, 2]]}}


def test_the_answer_keeps_the_encoding_of_the_request(server: RunningServer) -> None:
    found = ask(server, "single", ROWS)
    assert found["data"] == {"names": ["t:0", "t:1"], "ndarray": [[2.0, 4.0]]}
    tensor = {"data": {"tensor": {"shape": [2, 2], "values": [1, 2, 3, 4]}}}
    assert ask(server, "single", tensor)["data"]["tensor"] == {"shape": [2, 2], "values": [2.0, 4.0, 6.0, 8.0]}
    assert ask(server, "single", {"jsonData": {"x": [[1, 2]]}})["jsonData"] == {"y": [[2.0, 4.0]]}


def test_meta_has_puid_tags_routing_and_path(server: RunningServer) -> None:
    meta = ask(server, "chain", {"meta": {"puid": "p7", "tags": {"who": "me"}}, **ROWS})["meta"]
    assert (meta["puid"], meta["tags"], meta["routing"]) == ("p7", {"who": "me"}, {})
    assert meta["requestPath"] == {"add_one": "service add_one", "double": "service double"}
    assert len(ask(server, "chain", ROWS)["meta"]["puid"]) == 32


def test_a_transformer_comes_before_its_child(server: RunningServer) -> None:
    assert ask(server, "chain", ROWS)["data"]["ndarray"] == [[4.0, 6.0]]


def test_an_average_combiner_averages_its_children(server: RunningServer) -> None:
    assert ask(server, "average", ROWS)["data"]["ndarray"] == [[2.0, 3.5]]


def test_the_stub_answers_as_seldons(server: RunningServer) -> None:
    assert ask(server, "simple", ROWS)["data"]["tensor"]["values"] == [0.1, 0.9, 0.5]


def test_an_ab_test_splits_by_its_ratio_and_says_the_branch(server: RunningServer) -> None:
    counts: Counter[int] = Counter()
    for _ in range(200):
        found = ask(server, "abtest", ROWS)
        branch = found["meta"]["routing"]["ab"]
        assert found["data"]["ndarray"] == ([[2.0, 4.0]] if branch == 0 else [[2.0, 3.0]])
        counts[branch] += 1
    assert 119 < counts[0] < 181  # 150 expected, 5 standard deviations of 6.1


def test_predictors_get_their_traffic_and_a_shadow_none(server: RunningServer) -> None:
    counts = Counter(ask(server, "predictors", ROWS)["meta"]["routing"]["predictors"] for _ in range(200))
    assert set(counts) == {0, 1} and 119 < counts[0] < 181


@pytest.mark.parametrize(("graph", "unit"), [("bandit", "eg"), ("thompson", "ts")])
def test_feedback_teaches_the_router_and_fractions_are_exact(server: RunningServer, graph: str, unit: str) -> None:
    def feedback(branch: int, reward: float, rows: int = 1) -> Any:
        request = {"data": {"ndarray": [[1, 2]] * rows}}
        message = {"request": request, "response": {"meta": {"routing": {unit: branch}}}, "reward": reward}
        return call(f"{server.http}/seldon/ns/{graph}/api/v1.0/feedback", message)

    assert unit in ask(server, graph, ROWS)["meta"]["routing"]
    assert feedback(0, 0.3).status == 200
    assert feedback(1, 0.9, rows=10).status == 200
    state = call(f"{server.http}/v1/graphs/{graph}/routers", method="GET").json["routers"][unit]
    assert [(way["trials"], way["rewards"]) for way in state] == [(1.0, 0.3), (10.0, 9.0)]
    if graph == "bandit":  # epsilon 0: the best, always
        assert ask(server, graph, ROWS)["meta"]["routing"] == {unit: 1}
    for branch, reward in ((7, 0.5), (0, 1.5)):
        assert feedback(branch, reward).status == 400
    without = call(f"{server.http}/seldon/ns/{graph}/api/v1.0/feedback", {"response": {}, "reward": 1.0})
    assert without.status == 400 and "meta.routing" in without.json["status"]["info"]


@pytest.mark.parametrize(("branch", "answer"), [(0, [[2.0, 4.0]]), (1, [[9]]), (-1, [[2.0, 4.0]]), (-2, [[1, 2]])])
def test_a_router_elsewhere_chooses_a_branch_all_or_none(
    server: RunningServer, behind: Steps, branch: int, answer: Any
) -> None:
    behind.answers["/route"] = say({"data": {"ndarray": [[branch]]}, "meta": {"tags": {"routed": True}}})
    behind.answers["/predict"] = say({"data": {"ndarray": [[9]]}})
    found = ask(server, "away", ROWS)
    assert found["data"]["ndarray"] == answer
    assert found["meta"]["routing"] == {"route": branch} and found["meta"]["tags"] == {"routed": True}
    assert len(behind.at("/predict")) == (branch in (1, -1))


def test_feedback_goes_down_the_route(server: RunningServer, behind: Steps) -> None:
    behind.answers["/send-feedback"] = say({"meta": {}})
    for branch, told in ((0, 1), (1, 2)):
        behind.asked.clear()
        message = {"request": ROWS, "response": {"meta": {"routing": {"route": branch}}}, "reward": 0.5}
        assert call(f"{server.http}/seldon/ns/away/api/v1.0/feedback", message).status == 200
        assert len(behind.at("/send-feedback")) == told


def test_output_transformers_and_combiners_elsewhere_come_after_the_children(
    server: RunningServer, behind: Steps
) -> None:
    behind.answers["/transform-output"] = lambda body: say({"strData": json.dumps(json.loads(body)["data"]["ndarray"])})
    assert ask(server, "after", ROWS)["strData"] == "[[2.0, 4.0]]"
    behind.answers["/aggregate"] = lambda body: say({"jsonData": len(json.loads(body)["seldonMessages"])})
    assert ask(server, "joined", ROWS)["jsonData"] == 2


def test_headers_go_on_only_where_listed(server: RunningServer, behind: Steps) -> None:
    behind.answers["/transform-output"] = behind.answers["/aggregate"] = say({"strData": "it"})
    for graph in ("after", "joined"):
        headers = {"X-User-Id": "7", "Authorization": "Bearer k"}
        assert call(f"{server.http}/seldon/ns/{graph}{API}", ROWS, headers=headers).status == 200
    assert [each.headers.get("x-user-id") for each in behind.asked] == ["7", None]
    assert all("authorization" not in each.headers for each in behind.asked)


def test_errors_are_seldon_statuses_that_name_the_unit(server: RunningServer, behind: Steps) -> None:
    wrong = call(f"{server.http}/seldon/ns/single{API}", {"data": {"ndarray": [[1, 2, 3]]}})
    status = wrong.json["status"]
    assert (wrong.status, status["code"], status["reason"]) == (400, -1, "MICROSERVICE_BAD_DATA")
    assert "step 'double'" in status["info"]
    behind.answers["/route"] = say({"data": {"ndarray": [[5]]}})
    failed = call(f"{server.http}/seldon/ns/away{API}", ROWS)
    assert failed.status == 500 and "step 'route'" in failed.json["status"]["info"]
    for body in (b"", b"no json", b"[1]", b'{"data": {}, "strData": "x"}'):
        assert call(f"{server.http}/seldon/ns/single{API}", body).status == 400


def test_the_short_path_needs_one_graph(server: RunningServer) -> None:
    assert call(f"{server.http}{API}", ROWS).status == 404
    assert call(f"{server.http}/seldon/ns/none{API}", ROWS).status == 404
    assert call(f"{server.http}/seldon/ns/double{API}", ROWS).status == 404


def test_short_paths_answer_for_the_only_graph(shared_server: ServerFactory, tmp_path: Path) -> None:
    document = {
        "apiVersion": "machinelearning.seldon.io/v1alpha2", "kind": "SeldonDeployment", "metadata": {"name": "g"},
        "spec": {"name": "g", "predictors": [{"name": "p", "graph": model("double")}]},
    }  # fmt: skip
    (tmp_path / "g.json").write_text(json.dumps(document))
    alone = shared_server({"g": str(tmp_path / "g.json"), "double": f"{MODELS}:double"})
    for version in ("v1.0", "v0.1"):
        assert call(f"{alone.http}/api/{version}/predictions", ROWS).json["data"]["ndarray"] == [[2.0, 4.0]]
    described = call(f"{alone.http}/api/v1.0/metadata", method="GET").json
    assert described["name"] == "g" and described["models"]["double"]["inputs"][0]["name"] == "x"
    assert call(f"{alone.http}/api/v1.0/metadata/double", method="GET").json["versions"] == ["1"]
