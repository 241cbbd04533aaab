"""Whose a request is: by the written matches, else by the model's name in the path."""

from __future__ import annotations

import pytest

from penstock.fleet.router.table import CompiledTable, private
from penstock.fleet.routes import Arm, Endpoint, Table
from penstock.fleet.spec import Match


def endpoint(name: str, *matches: Match) -> Endpoint:
    return Endpoint(name, (Arm(1, 1.0),), 1, matches=matches)


def found(table: CompiledTable, host: str, path: str, **headers: str) -> str | None:
    hit = table.endpoint_for(host, path, {name.replace("_", "-"): value for name, value in headers.items()})
    return None if hit is None else hit.name


@pytest.mark.parametrize(
    "path",
    ["/v2/models/fraud/infer", "/v2/models/fraud", "/v2/models/fraud/versions/3/infer", "/v1/models/fraud",
     "/v1/models/fraud:predict", "/predict/fraud", "/v2/models/fraud/generate_stream", "/endpoints/fraud/feedback",
     "/v1/graphs/fraud", "/v1/graphs/fraud/feedback", "/seldon/banking/fraud/api/v1.0/predictions"],
)  # fmt: skip
def test_the_name_in_the_path_decides(path: str) -> None:
    table = CompiledTable(Table(1, (endpoint("fraud"), endpoint("fraud2"))))
    assert found(table, "any", path) == "fraud"
    assert table.by_name("fraud2") is not None
    assert table.by_name("other") is None


@pytest.mark.parametrize("path", ["/", "/v2/models", "/v2/models/other/infer", "/v2/models/FRAUD", "/predict/fraud%20"])
def test_what_names_no_deployment_is_nobodys(path: str) -> None:
    assert found(CompiledTable(Table(1, (endpoint("fraud"),))), "any", path) is None


def test_the_closest_match_counts() -> None:
    table = CompiledTable(
        Table(
            1,
            (
                endpoint("wide", Match(path_prefix="/api")),
                endpoint("narrow", Match(path_prefix="/api/fraud")),
                endpoint("hosted", Match(host="Fraud.example")),
                endpoint("beta", Match(path_prefix="/api/fraud", headers={"X-Beta": "yes"})),
            ),
        )
    )
    assert found(table, "a", "/api/x") == "wide"
    assert found(table, "a", "/api/fraud") == "narrow"
    assert found(table, "a", "/api/fraudulent") == "wide"
    assert found(table, "a", "/api/fraud/1", x_beta="yes") == "beta"
    assert found(table, "a", "/api/fraud/1", x_beta="no") == "narrow"
    assert found(table, "fraud.EXAMPLE:8080", "/anything") == "hosted"
    assert found(table, "other.example", "/anything") is None
    assert found(table, "other.example", "/v2/models/wide/infer") == "wide", "its name is always a way to it"


@pytest.mark.parametrize(
    "path",
    ["/v2/repository/index", "/v2/%72epository/index", "/v2/repository", "/v2/models/fraud/../../repository/index",
     "/v2/models/fraud/%2e%2e/x", "/v2//repository/index", "/metrics", "/v2/logging", "/v2/models/fraud/trace/setting",
     "/v2/systemsharedmemory/status", "/v2/./repository/index", "/internal/routes", "/api/v1/deployments"],
)  # fmt: skip
def test_what_is_a_runtimes_own_is_not_passed_on(path: str) -> None:
    table = CompiledTable(Table(1, (endpoint("fraud", Match(path_prefix="/")),)))
    assert private(path)
    assert found(table, "any", path) is None
