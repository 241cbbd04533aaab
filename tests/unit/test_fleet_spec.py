"""What users may write about a deployment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penstock.core.errors import InvalidInput
from penstock.fleet import spec
from penstock.fleet.spec import Deployment, Replicas, Run, Scaler, Traffic


def test_short_forms_are_read() -> None:
    document = {
        "model": "/m/1",
        "replicas": "0..4",
        "traffic": "thompson",
        "memory": "2GiB",
        "scaling": {"policy": "rps"},
    }
    assert spec.read("fraud", document) == Deployment(
        name="fraud",
        run=Run(model="/m/1", memory_bytes=2 << 30),
        replicas=Replicas(minimum=0, maximum=4),
        scaling=(Scaler(policy="rps"),),
        traffic=Traffic(policy="thompson"),
    )


def test_what_was_written_out_reads_back_the_same() -> None:
    wish = spec.read("a", {"graph": "/g.yaml", "routes": [{"host": "a.example"}], "requests": {"idempotent": True}})
    assert spec.read("a", spec.write(wish)) == wish


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"modell": "x"}, "did you mean 'model'"),
        ({"model": "x", "requests": {"time_out_s": 3}}, "'requests.time_out_s'; did you mean 'timeout_s'"),
        ({"model": "x", "traffic": {"sticky": {"b": "x"}}}, "'traffic.sticky.b'"),
        ({"model": 3}, "model: text is allowed, and there is a whole number"),
        ({"env": {"PORT": 8080}}, "env: text is allowed, and there is a whole number"),
        ({"routes": {"host": "a"}}, "routes: a list is allowed, and there is a table"),
        ({"routes": [{"host": 1}]}, "routes[0].host: text"),
        ({"cpu": "two"}, "cpu: a number is allowed, and there is text"),
        ({"requests": {"timeout_s": "5s"}}, "requests.timeout_s: a number is allowed, and there is text"),
        ({}, "either model or graph"),
        ({"model": "x", "graph": "y"}, "either model or graph"),
        ({"model": "x", "replicas": "4..1"}, "minimum ≤ maximum"),
        ({"model": "x", "replicas": 0}, "at least 1"),
        ({"model": "x", "replicas": True}, "bounds such as 0..4"),
        ({"model": "x", "memory": "much"}, "memory is 'much'"),
        ({"model": "x", "memory": "1GiB", "memory_bytes": 1 << 30}, "write one"),
        ({"model": "x", "gpu": 1.5}, "whole number, or a share"),
        ({"model": "x", "cpu": 0}, "above 0"),
        ({"model": "x", "secrets": {"TOKEN": "hunter2"}}, "never its value"),
        ({"model": "x", "rollout": {"strategy": "big-bang"}}, "rolling, blue-green, recreate"),
        ({"model": "x", "requests": {"hedge_after_s": 0.1}}, "needs requests.idempotent"),
        ({"model": "x", "scaling": []}, "at least one policy"),
        ({"model": "x", "traffic": {"shadow": {"revision": 2, "share": 2}}}, "at most 1"),
        ({"model": "x", "requests": {"affinity": {"by": "moon"}}}, "header or cookie"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused(document: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInput, match="deployment x: ") as caught:
        spec.read("x", document)
    assert words in caught.value.message


@pytest.mark.parametrize("name", ["", "A", "a/b", "-a", "a" * 64, "a b", "../x"])
def test_a_name_fits_into_paths_and_headers(name: str) -> None:
    with pytest.raises(InvalidInput, match="a name is"):
        spec.read(name, {"model": "x"})


def test_a_secret_that_was_refused_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as caught:
        spec.read("x", {"model": "x", "secrets": {"TOKEN": "hunter2"}})
    assert "hunter2" not in caught.value.message


def test_the_page_of_deployments_has_every_key_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "docs" / "deployments.md").read_text()
    written = set(re.findall(r"^\| `([a-z_.]+)`", text, re.MULTILINE))
    tables = {"rollout": spec.Rollout, "traffic": spec.Traffic, "requests": spec.Requests}
    known = {*Run.__struct_fields__, *Deployment.__struct_fields__} - {"name", "run", *tables}
    known |= {f"{table}.{key}" for table, kind in tables.items() for key in kind.__struct_fields__}
    assert written - {"memory"} == known - {"memory_bytes"}


def test_what_was_accepted_before_is_read_again_although_a_newer_rule_forbids_it() -> None:
    document = {"model": "/m", "rollout": {"surge": 0}}
    again = spec.read_again("digits", document)
    assert again.rollout.surge == 0
    for judge in (lambda: spec.check(again), lambda: spec.read("digits", document)):
        with pytest.raises(InvalidInput, match="surge"):
            judge()
