"""Any graph answers as a slow interpreter says that takes one step after the other; any text is read or refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from penstock.core.errors import InvalidInput, Overloaded, PenstockError, ServableError
from penstock.core.messages import Request, Response
from penstock.core.servable import Signature
from penstock.core.tensor import parse_spec
from penstock.graphs import bandit, gjson, reading, triton, validate
from penstock.graphs.definition import Bandit
from penstock.runtime.graphs.bandits import Bandits
from penstock.runtime.graphs.calling import Calls
from penstock.runtime.graphs.journey import Journey
from penstock.runtime.graphs.remote import Remote
from penstock.runtime.graphs.tensors import TensorRunner

MODELS = {"double": lambda x: x * 2, "inc": lambda x: x + 1, "negate": lambda x: -x}
PICKY_FROM = 20.0  # `picky` fails above
SIGNATURE = Signature((parse_spec("x", "f8[n]"),), (parse_spec("y", "f8[n]"),), "test", True)


class Door:
    """Models that answer a little later, one of which fails, behind queues that are full now and then."""

    def __init__(self) -> None:
        self.asked = 0
        self.running = 0

    def signature(self, model: str, version: str = "") -> Signature:
        return SIGNATURE

    def submit(self, request: Request) -> asyncio.Future[Response]:
        self.asked += 1
        if self.running >= 2:
            raise Overloaded("the queue is full")
        return asyncio.ensure_future(self._answer(request))

    async def _answer(self, request: Request) -> Response:
        self.running += 1
        try:
            await asyncio.sleep(0)
            x = request.inputs["x"]
            if request.model == "picky" and x.max() > PICKY_FROM:
                raise ServableError("too much")
            return Response(request.model, "1", {"y": MODELS.get(request.model, lambda each: each)(x)})
        finally:
            self.running -= 1


NAMES = some.sampled_from(["x", "y", "z"])
CALLS = some.fixed_dictionaries(
    {
        "model": some.sampled_from([*MODELS, "picky"]),
        "inputs": some.fixed_dictionaries({"x": NAMES}),
        "outputs": some.fixed_dictionaries({"y": NAMES}),
        "dependency": some.sampled_from(["hard", "hard", "soft"]),
    }
)
CONDITIONS = some.sampled_from(
    ["max(x) > 4", "min(y) < 0", "z", "not z", "max(x) > 1 and rows(x) == 1", "max(z) >= 8 or x"]
)


def nodes(inside: some.SearchStrategy[dict[str, Any]]) -> some.SearchStrategy[dict[str, Any]]:
    steps = some.lists(inside, min_size=1, max_size=4)
    conditional = some.tuples(inside, some.none() | CONDITIONS).map(_when)
    return some.one_of(
        some.lists(conditional, min_size=1, max_size=4).map(lambda them: {"sequence": them}),
        some.tuples(some.lists(some.tuples(inside, CONDITIONS).map(_when), max_size=3), some.none() | inside).map(
            _switch
        ),
        some.tuples(steps, some.sampled_from(["average", "majority"])).map(
            lambda it: {"ensemble": it[0], "combine": it[1]}
        ),
    )


def _when(pair: tuple[dict[str, Any], str | None]) -> dict[str, Any]:
    step, when = pair
    return step if when is None else {**step, "when": when}


def _switch(parts: tuple[list[dict[str, Any]], dict[str, Any] | None]) -> dict[str, Any]:
    cases, otherwise = parts
    return {"switch": [*cases, otherwise or {"model": "inc", "inputs": {"x": "x"}, "outputs": {"y": "y"}}]}


GRAPHS = nodes(some.recursive(CALLS, nodes, max_leaves=10))


def numbered(node: dict[str, Any]) -> dict[str, Any]:
    """The same with a name for every step, since two may be of one model."""
    out = dict(node)
    for kind in ("sequence", "switch", "ensemble"):
        if kind in node:
            out[kind] = [{"name": f"s{index}", **numbered(step)} for index, step in enumerate(node[kind])]
    return out


class Failed(Exception):
    pass


Values = Mapping[str, np.ndarray]


def slowly(node: dict[str, Any], values: Values) -> dict[str, np.ndarray]:
    """What a node adds: the reference."""
    if "sequence" in node:
        here, added = dict(values), {}
        for step in node["sequence"]:
            if holds(step, here):
                given = step_slowly(step, here)
                here.update(given)
                added.update(given)
        return added
    if "switch" in node:
        for step in node["switch"]:
            if holds(step, values):
                return step_slowly(step, values)
        raise Failed
    answers = [given for step in node["ensemble"] if (given := step_slowly(step, values))]
    shared = [name for name in (answers[0] if answers else {}) if all(name in each for each in answers)]
    if not shared:
        raise Failed
    out = {}
    for name in shared:
        numbers = [float(each[name][0]) for each in answers]
        if node["combine"] == "average":
            out[name] = np.array([sum(numbers) / len(numbers)])
        else:
            most = max(numbers.count(number) for number in numbers)
            out[name] = np.array([next(number for number in numbers if numbers.count(number) == most)])
    return out


def step_slowly(step: dict[str, Any], values: Values) -> dict[str, np.ndarray]:
    if "model" not in step:
        return slowly(step, values)
    try:
        if step["inputs"]["x"] not in values:
            raise Failed
        x = values[step["inputs"]["x"]]
        if step["model"] == "picky" and x.max() > PICKY_FROM:
            raise Failed
        return {step["outputs"]["y"]: MODELS.get(step["model"], lambda each: each)(x)}
    except Failed:
        if step["dependency"] == "hard":
            raise
        return {}


def holds(step: dict[str, Any], values: Values) -> bool:
    number = {name: float(array[0]) for name, array in values.items()}
    return {
        None: lambda: True,
        "max(x) > 4": lambda: number["x"] > 4,
        "min(y) < 0": lambda: "y" in number and number["y"] < 0,
        "z": lambda: "z" in number,
        "not z": lambda: "z" not in number,
        "max(x) > 1 and rows(x) == 1": lambda: number["x"] > 1,
        "max(z) >= 8 or x": lambda: True,
    }[step.get("when")]()


def runner(document: dict[str, Any], door: Door) -> TensorRunner:
    graph = reading.read(json.dumps({"kind": "Graph", **document}), "g")
    return TensorRunner(graph, Calls(door, Remote()), Bandits(graph))  # type: ignore[arg-type]  # a part of a Door


@settings(max_examples=80, deadline=None)
@given(GRAPHS, some.lists(some.integers(-3, 30), min_size=1, max_size=4))
def test_a_graph_answers_as_the_slow_interpreter_says(node: dict[str, Any], numbers: list[int]) -> None:
    document = numbered(node)
    expected: list[dict[str, np.ndarray] | None] = []
    for number in numbers:
        try:
            expected.append(slowly(node, {"x": np.array([float(number)])}))
        except Failed:
            expected.append(None)

    async def ask(run: TensorRunner, number: int) -> dict[str, np.ndarray] | None:
        journey = Journey(time.monotonic() + 30, {})
        try:
            return dict(await run.answer(journey, {"x": np.array([float(number)])}))
        except (ServableError, InvalidInput):
            return None

    async def all_at_once() -> tuple[list[Any], Door]:
        door = Door()
        run = runner(document, door)
        found = await asyncio.gather(*(ask(run, number) for number in numbers))
        for _ in range(3):
            await asyncio.sleep(0)
        return found, door

    found, door = asyncio.run(all_at_once())
    assert door.running == 0  # what was asked is over, also where a graph failed early
    for got, want in zip(found, expected, strict=True):
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            assert {name: array.tolist() for name, array in got.items()} == {n: a.tolist() for n, a in want.items()}


JSON = some.recursive(
    some.none() | some.booleans() | some.integers(-100, 100) | some.text(max_size=6),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text("ab.#", max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(some.text('ab01.#()|="><!%*?\\[]@this~', max_size=24), JSON)
def test_a_path_is_refused_or_looks_without_failing(text: str, document: object) -> None:
    try:
        path = gjson.read(text)
    except InvalidInput:
        return
    assert isinstance(path.exists(document), bool)


@given(
    some.dictionaries(
        some.sampled_from(["kind", "sequence", "nodes", "root", "spec", "inputs", "combine", "ensemble"]),
        JSON,
        max_size=6,
    )
)
def test_a_document_is_read_or_refused(document: dict[str, object]) -> None:
    for kind in reading.KINDS:
        try:
            validate.problems(reading.read(json.dumps({**document, "kind": kind}), "g"))
        except PenstockError:
            continue


@given(some.text("ab{}[]<>:,;'\"#\\ \n12", max_size=40))
def test_text_format_is_read_or_refused(text: str) -> None:
    try:
        triton.parse(text)
    except InvalidInput:
        return


class Fixed:
    """Random numbers that are arguments."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number

    def betavariate(self, alpha: float, beta: float) -> float:
        return alpha / (alpha + beta)


@given(
    some.lists(some.tuples(some.integers(0, 2), some.floats(0, 1)), max_size=30),
    some.floats(0, 0.999),
    some.floats(0, 1),
)
def test_a_bandit_learns_exactly_and_explores_only_among_the_others(
    rewards: list[tuple[int, float]], number: float, epsilon: float
) -> None:
    ways = [bandit.Way() for _ in range(3)]
    for index, reward in rewards:
        bandit.learn(ways, index, reward)
    for index, way in enumerate(ways):
        assert way.trials == sum(1 for each, _ in rewards if each == index)
        assert way.rewards == pytest.approx(sum(reward for each, reward in rewards if each == index))
    means = [way.mean for way in ways]
    chosen = bandit.choose(Bandit("epsilon-greedy", epsilon), ways, Fixed(number))
    if rewards and number >= epsilon:
        assert means[chosen] == max(means)
    elif rewards and means.count(max(means)) == 1:
        assert chosen != means.index(max(means))
    best = bandit.choose(Bandit("thompson"), ways, Fixed(number))
    score = [(1 + way.rewards) / (2 + way.trials) for way in ways]
    assert score[best] == pytest.approx(max(score))
