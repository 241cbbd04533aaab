"""What every scaling and placement policy owes, found by listing the folders."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

import penstock.fleet.placement
import penstock.fleet.scaling
from penstock.core.errors import InvalidInput
from penstock.fleet.placement import Place
from penstock.fleet.scaling import Load
from penstock.fleet.spec import Run
from penstock.fleet.state import LoadSample


def found(package):
    names = sorted(path.stem for path in Path(package.__path__[0]).glob("*.py") if path.stem != "__init__")
    return [pytest.param(importlib.import_module(f"{package.__name__}.{name}").plug, name, id=name) for name in names]


scalers = pytest.mark.parametrize(("plug", "name"), found(penstock.fleet.scaling))
placers = pytest.mark.parametrize(("plug", "name"), found(penstock.fleet.placement))
NEEDED = {"schedule": {"rules": [{"replicas": 2}]}}


@scalers
def test_a_scaling_policy_is_named_after_its_file_and_refuses_what_it_does_not_know(plug, name):
    assert plug.name == name
    plug.options(NEEDED.get(name, {}))
    with pytest.raises(InvalidInput) as refused:
        plug.options({**NEEDED.get(name, {}), "nonsense": 1})
    assert "nonsense" in str(refused.value) and name in str(refused.value)


@scalers
def test_a_scaling_policy_that_has_just_started_leaves_what_there_is(plug, name):
    if name == "schedule":
        pytest.skip("a schedule looks at the clock alone")
    assert plug.size(plug.options({}), Load(1e9, [], 3, 3)).replicas == 3


@scalers
def test_a_scaling_policy_says_why_and_remembers_only_what_can_be_stored(plug, name):
    samples = [LoadSample(1e9 + at, 10.0, 100.0, 0.5, 3) for at in range(30)]
    size = plug.size(plug.options(NEEDED.get(name, {})), Load(1e9 + 30, samples, 2, 2))
    assert size.reason and size.replicas >= 0
    json.dumps(size.memory)


@placers
def test_a_placement_policy_is_named_after_its_file_and_says_why_nothing_fits(plug, name):
    assert plug.name == name
    assert plug.place(Run(model="m"), [Place("here", 2.0, 1 << 30)], []).place == "here"
    refused = plug.place(Run(model="m", gpu=1.0), [Place("here", 2.0, 1 << 30)], [])
    assert refused.place is None and "1 GPU" in refused.reason
