"""Our own graph files. Values have names: a step reads its inputs from them and adds its outputs to them.

    kind: Graph
    name: digits
    inputs: {image: "f4[n, 64]"}
    outputs: {label: "i8[n]"}
    sequence:
      - model: scale
        inputs: {x: image}              # the model's tensor: the value
        outputs: {y: scaled}
      - switch:
          - when: mean(scaled) > 0.5
            model: bright
          - model: dark                 # no condition: otherwise

A node is one of `sequence`, `switch`, `ensemble`, `splitter`, `router`, and may stand inside a step, or under `nodes`
with a name by which several steps refer to it (`node: NAME`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from penstock.core.errors import InvalidInput
from penstock.core.graph_calls import TENSORS
from penstock.core.tensor import parse_spec
from penstock.graphs import conditions, keys
from penstock.graphs.definition import (
    ENDPOINT,
    ENSEMBLE,
    MODEL,
    NODE,
    ROUTER,
    SEQUENCE,
    SPLITTER,
    SWITCH,
    URL,
    Bandit,
    Graph,
    Node,
    Step,
    Target,
)

_NODES: Final = (SEQUENCE, SWITCH, ENSEMBLE, SPLITTER, ROUTER)
_BESIDE: Final = {ENSEMBLE: ("combine",), ROUTER: ("policy", "epsilon", "best", "seed")}
_TARGETS: Final = {"model": MODEL, "endpoint": ENDPOINT, "url": URL, "node": NODE}
_STEP: Final = (
    "name", *_TARGETS, *_NODES, "combine", "policy", "epsilon", "best", "seed", "version", "when", "inputs", "outputs",
    "weight", "timeout_s", "retries", "dependency", "before", "after",
)  # fmt: skip
_GRAPH: Final = (
    "kind", "name", "inputs", "outputs", "timeout_s", "concurrency", "batchable", "root", "nodes", *_NODES, "combine",
    "policy", "epsilon", "best", "seed",
)  # fmt: skip
POLICIES: Final = ("epsilon-greedy", "thompson")
COMBINATIONS: Final = ("average", "majority")
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,62}")
_MOST_NODES, _DEEPEST = 1000, 16


def read(document: Mapping[str, object], name: str) -> Graph:
    """The graph of a document. Raises: InvalidInput."""
    keys.known(document, _GRAPH, "graph")
    name = keys.text(document, "name", "graph", name)
    nodes: dict[str, Node] = {}
    written = keys.mapping(document.get("nodes") or {}, "nodes")
    inline = [kind for kind in _NODES if kind in document]
    if len(inline) > 1 or (inline and "root" in document):
        raise InvalidInput(f"graph: give one of {', '.join(_NODES)}, or root and nodes")
    root = keys.text(document, "root", "graph", "root")
    for each, body in written.items():
        _check_name(each, "node")
        part = keys.mapping(body, f"node {each}")
        keys.known(part, (*_NODES, *sum(_BESIDE.values(), ())), f"node {each}")
        _node(each, part, nodes, 0)
    if inline:
        if "root" in written:
            raise InvalidInput(f"graph: {inline[0]} is the root, and nodes has a root too; remove one of them")
        _node("root", document, nodes, 0)
    elif root not in nodes:
        known = ", ".join(nodes) or "none"
        raise InvalidInput(f"graph: the root node {root!r} is not there; nodes: {known}; or give one of {_listed()}")
    inputs = keys.texts(document.get("inputs"), "inputs")
    outputs = keys.texts(document.get("outputs"), "outputs")
    batchable = document.get("batchable")
    if batchable is not None and not isinstance(batchable, bool):
        raise InvalidInput("graph: batchable is true or false")
    return Graph(
        name,
        TENSORS,
        root if not inline else "root",
        nodes,
        "native",
        tuple(parse_spec(each, declaration) for each, declaration in inputs.items()),
        tuple(parse_spec(each, declaration) for each, declaration in outputs.items()),
        keys.number(document, "timeout_s", "graph", above=True),
        keys.whole(document, "concurrency", "graph", 256, least=1, most=100_000),
        batchable=batchable,
    )


def _listed() -> str:
    return ", ".join(_NODES)


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{what} {name[:80]!r}: a name is 1 to 63 letters, digits, _ . -")


def _node(name: str, document: Mapping[str, object], nodes: dict[str, Node], depth: int) -> None:
    where = f"node {name}"
    if depth > _DEEPEST or len(nodes) >= _MOST_NODES:
        raise InvalidInput(f"{where}: a graph has at most {_MOST_NODES} nodes, {_DEEPEST} inside each other")
    kinds = [kind for kind in _NODES if kind in document]
    if len(kinds) != 1:
        raise InvalidInput(f"{where}: give one of {_listed()}, not {', '.join(kinds) or 'none'}")
    kind = kinds[0]
    for owner, extra in _BESIDE.items():
        for key in extra:
            if owner != kind and key in document:
                raise InvalidInput(f"{where}: {key} has no effect on a {kind}; it belongs to a {owner}")
    written = keys.items(document[kind], where)
    if not written:
        raise InvalidInput(f"{where}: a {kind} has at least one step")
    steps: list[Step] = []
    nodes[name] = Node(name, kind, ())  # its place among the others: before those inside it
    for index, each in enumerate(written):
        step = _step(name, index, keys.mapping(each, f"{where} step {index}"), nodes, depth)
        steps.append(step)
    _check_steps(where, kind, steps, written)
    combine, combiner = _combination(where, document, name, nodes)
    nodes[name] = Node(name, kind, tuple(steps), combine, combiner, _bandit(where, kind, document, len(steps)))


def _check_steps(where: str, kind: str, steps: list[Step], written: list[object]) -> None:
    names = [step.name for step in steps]
    for twice in {name for name in names if names.count(name) > 1}:
        raise InvalidInput(f"{where}: two steps are called {twice!r}; give one another name")
    for step, each in zip(steps, written, strict=True):
        assert isinstance(each, Mapping)
        if kind != SPLITTER and "weight" in each:
            raise InvalidInput(f"{where} step {step.name}: weight has no effect in a {kind}; it belongs to a splitter")
        if kind not in (SWITCH, SEQUENCE) and step.when is not None:
            raise InvalidInput(f"{where} step {step.name}: when has no effect in a {kind}")
    if kind == SWITCH and any(step.when is None for step in steps[:-1]):
        raise InvalidInput(f"{where}: a step without `when` takes all that is left, so only the last may be one")
    if kind == SPLITTER and not sum(step.weight for step in steps) > 0:
        raise InvalidInput(f"{where}: the weights add up to 0")


def _step(parent: str, index: int, document: Mapping[str, object], nodes: dict[str, Node], depth: int) -> Step:
    where = f"node {parent} step {keys.text(document, 'name', parent, str(index))}"
    keys.known(document, _STEP, where)
    targets = [key for key in (*_TARGETS, *_NODES) if key in document]
    if len(targets) != 1:
        raise InvalidInput(
            f"{where}: give one of {', '.join((*_TARGETS, *_NODES))}, not {', '.join(targets) or 'none'}"
        )
    name = keys.text(document, "name", where) or _name_of(targets[0], document, index)
    _check_name(name, "step")
    target = _target(f"{parent}.{name}", targets[0], document, nodes, depth, where)
    before, after = (document.get(key) for key in ("before", "after"))
    if before is not None or after is not None:
        target = _transformed(f"{parent}.{name}", target, document, nodes, depth, where)
    dependency = keys.text(document, "dependency", where, "hard").lower()
    if dependency not in ("hard", "soft"):
        raise InvalidInput(f"{where}: dependency is {dependency!r}; hard or soft")
    when = document.get("when")
    plain = target.kind != NODE
    return Step(
        name,
        target,
        None if when is None else conditions.read(str(when)),
        inputs=keys.texts(document.get("inputs"), f"{where} inputs") if plain else {},
        outputs=keys.texts(document.get("outputs"), f"{where} outputs") if plain else {},
        weight=keys.number(document, "weight", where, 1.0) or 0.0,
        hard=dependency == "hard",
        timeout_s=keys.number(document, "timeout_s", where, above=True),
        retries=keys.whole(document, "retries", where, 0, most=10),
    )


def _name_of(key: str, document: Mapping[str, object], index: int) -> str:
    name = str(document[key]) if key in ("model", "endpoint", "node") else f"{key}{index}"
    return re.sub(r"[^\w.-]+", "_", name)[:63] or str(index)


def _target(
    name: str, key: str, document: Mapping[str, object], nodes: dict[str, Node], depth: int, where: str
) -> Target:
    if key in _NODES:
        for extra in ("inputs", "outputs", "version"):
            if extra in document:
                raise InvalidInput(f"{where}: {extra} has no effect beside {key}; write it at the steps inside")
        _node(name, {k: document[k] for k in (*_NODES, *sum(_BESIDE.values(), ())) if k in document}, nodes, depth + 1)
        return Target(NODE, name)
    stray = [extra for extras in _BESIDE.values() for extra in extras if extra in document]
    if stray:
        raise InvalidInput(f"{where}: {stray[0]} has no effect beside {key}")
    text = keys.text(document, key, where)
    if key == "url" and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text):
        raise InvalidInput(f"{where}: url is {text!r}; write it like http://host:8080/v2/models/NAME/infer")
    if not text:
        raise InvalidInput(f"{where}: {key} is empty")
    version = keys.text(document, "version", where)
    if version and key not in ("model", "endpoint"):
        raise InvalidInput(f"{where}: version has no effect beside {key}")
    return Target(_TARGETS[key], text, version)


def _transformed(
    name: str, target: Target, document: Mapping[str, object], nodes: dict[str, Node], depth: int, where: str
) -> Target:
    """A sequence: what is `before`, the step itself, what is `after`."""
    own = {key: document[key] for key in ("inputs", "outputs") if key in document}
    parts: list[Step] = []
    for part in ("before", None, "after"):
        if part is None:
            plain = target.kind != NODE
            parts.append(
                Step(
                    re.sub(r"[^\w.-]+", "_", target.name)[:63] if plain else "itself",
                    target,
                    inputs=keys.texts(own.get("inputs"), f"{where} inputs") if plain else {},
                    outputs=keys.texts(own.get("outputs"), f"{where} outputs") if plain else {},
                )
            )
        elif document.get(part) is not None:
            written = {"name": part, **keys.mapping(document[part], f"{where} {part}")}
            parts.append(_step(f"{name}.{part}", 0, written, nodes, depth + 1))
    wrapper = f"{name}.transformed"
    nodes[wrapper] = Node(wrapper, SEQUENCE, tuple(parts))
    return Target(NODE, wrapper)


def _combination(
    where: str, document: Mapping[str, object], name: str, nodes: dict[str, Node]
) -> tuple[str, Step | None]:
    combine = document.get("combine")
    if combine is None:
        return "", None
    if isinstance(combine, Mapping):  # a model that is given every answer
        step = _step(f"{name}.combine", 0, {"name": "combine", **combine}, nodes, 0)
        if step.target.kind == NODE:
            raise InvalidInput(f"{where}: combine is a model, an endpoint or a url")
        return "custom", step
    if combine not in COMBINATIONS:
        raise InvalidInput(f"{where}: combine is {combine!r}; one of {', '.join(COMBINATIONS)}, or {{model: NAME}}")
    return str(combine), None


def _bandit(where: str, kind: str, document: Mapping[str, object], count: int) -> Bandit | None:
    if kind != ROUTER:
        return None
    policy = keys.text(document, "policy", where, "thompson")
    if policy not in POLICIES:
        raise InvalidInput(f"{where}: policy is {policy!r}; one of {', '.join(POLICIES)}")
    epsilon = keys.number(document, "epsilon", where, 0.1) or 0.0
    if epsilon > 1:
        raise InvalidInput(f"{where}: epsilon is {epsilon:g}; it is between 0 and 1")
    best = keys.whole(document, "best", where, 0, most=count - 1)
    seed = keys.whole(document, "seed", where, -1, least=-1, most=1 << 62)
    return Bandit(policy, epsilon, best, None if seed < 0 else seed)
