"""Seldon Core 1's SeldonDeployment, v1, v1alpha2 and v1alpha3: its predictors' graphs.

A unit asks, in this order: nobody, where its implementation answers by itself; the address of its `endpoint`; the model
of the same server that has its name; another endpoint of that name. Where its files lie in a cluster (`modelUri`,
images) says nothing here: the models are served beside the graph, under the units' names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from penstock.core.errors import InvalidInput
from penstock.core.graph_calls import MESSAGES
from penstock.graphs import keys
from penstock.graphs.definition import (
    BUILT_IN,
    NODE,
    SERVICE,
    SPLITTER,
    UNIT,
    URL,
    Bandit,
    Graph,
    Node,
    Step,
    Target,
    Unit,
)
from penstock.graphs.kserve import PROPAGATE, header_patterns

MODEL, ROUTER, COMBINER = "MODEL", "ROUTER", "COMBINER"
TRANSFORMER, OUTPUT_TRANSFORMER = "TRANSFORMER", "OUTPUT_TRANSFORMER"
TYPES: Final = (MODEL, ROUTER, COMBINER, TRANSFORMER, OUTPUT_TRANSFORMER)
SIMPLE_MODEL, SIMPLE_ROUTER, RANDOM_ABTEST = "SIMPLE_MODEL", "SIMPLE_ROUTER", "RANDOM_ABTEST"
AVERAGE_COMBINER, EPSILON_GREEDY, THOMPSON = "AVERAGE_COMBINER", "EPSILON_GREEDY", "THOMPSON_SAMPLING"
_TYPE_OF: Final = {
    SIMPLE_MODEL: MODEL, SIMPLE_ROUTER: ROUTER, RANDOM_ABTEST: ROUTER, EPSILON_GREEDY: ROUTER, THOMPSON: ROUTER,
    AVERAGE_COMBINER: COMBINER,
}  # fmt: skip
_PREDICTOR_NOTES: Final = ("explainer", "svcOrchSpec", "engineResources", "labels", "ssl", "progressDeadlineSeconds")
_MOST_UNITS, _DEEPEST = 1000, 64


def read(document: Mapping[str, object], name: str) -> Graph:
    """The graph of a document. Raises: InvalidInput."""
    version = keys.text(document, "apiVersion", "graph")
    if not re.fullmatch(r"machinelearning\.seldon\.io/v1(alpha[23])?", version):
        raise InvalidInput(f"a SeldonDeployment of apiVersion {version!r}; machinelearning.seldon.io/v1 is known")
    metadata = keys.mapping(document.get("metadata") or {}, "metadata")
    spec = keys.mapping(document.get("spec"), "spec")
    protocol = keys.text(spec, "protocol", "spec", "seldon")
    if protocol not in ("seldon", ""):
        raise InvalidInput(f"spec.protocol is {protocol!r}; graphs of Seldon Core 1 speak 'seldon' here")
    if spec.get("serverType") not in (None, "rpc"):
        raise InvalidInput(f"spec.serverType is {spec['serverType']!r}; only 'rpc' is here")
    written = keys.items(spec.get("predictors"), "spec.predictors")
    predictors = [keys.mapping(each, f"predictor {index}") for index, each in enumerate(written)]
    notes = [
        f"predictor {keys.text(each, 'name', 'predictor')} is a shadow" for each in predictors if each.get("shadow")
    ]
    live = [each for each in predictors if not each.get("shadow")]
    if not live:
        raise InvalidInput("spec.predictors is empty; a graph has at least one")
    notes += [f"predictor.{key}" for key in _PREDICTOR_NOTES if any(key in each for each in live)]
    nodes: dict[str, Node] = {}
    roots = []
    for index, predictor in enumerate(live):
        label = keys.text(predictor, "name", "predictor", f"predictor{index}")
        graph = keys.mapping(predictor.get("graph"), f"predictor {label}: graph")
        images = _images(predictor)
        prefix = f"{label}/" if len(live) > 1 else ""
        roots.append((label, _unit(prefix, graph, images, nodes, 0), predictor))
    root = roots[0][1] if len(roots) == 1 else _split(roots, nodes)
    annotations = keys.mapping(metadata.get("annotations") or {}, "metadata.annotations")
    own = keys.mapping(spec.get("annotations") or {}, "spec.annotations")
    timeout_ms = str(annotations.get("seldon.io/rest-timeout") or own.get("seldon.io/rest-timeout") or "")
    return Graph(
        keys.text(metadata, "name", "metadata", keys.text(spec, "name", "spec", name)),
        MESSAGES,
        root,
        nodes,
        "seldon",
        timeout_s=int(timeout_ms) / 1000 if timeout_ms.isdecimal() and 0 < len(timeout_ms) < 10 else None,
        propagate=header_patterns(str(annotations.get(PROPAGATE, ""))),
        batchable=False,
        notes=tuple(notes),
    )


def _split(roots: list[tuple[str, str, Mapping[str, object]]], nodes: dict[str, Node]) -> str:
    """Several predictors: each gets its `traffic`; without any, the same."""
    shares = [keys.number(predictor, "traffic", f"predictor {label}") for label, _, predictor in roots]
    given = [share for share in shares if share is not None]
    if given and sum(given) != 100:
        raise InvalidInput(f"the predictors' traffic adds up to 100, these to {sum(given):g}")
    steps = tuple(
        Step(label, Target(NODE, root), weight=(share or 0.0) if given else 1.0)
        for (label, root, _), share in zip(roots, shares, strict=True)
    )
    nodes["predictors"] = Node("predictors", SPLITTER, steps)
    return "predictors"


def _images(predictor: Mapping[str, object]) -> dict[str, str]:
    """The image of each container, by name: those of Seldon's bandits are known."""
    found: dict[str, str] = {}
    for component in keys.items(predictor.get("componentSpecs"), "componentSpecs"):
        spec = keys.mapping(keys.mapping(component, "componentSpecs").get("spec") or {}, "componentSpecs.spec")
        for container in keys.items(spec.get("containers"), "containers"):
            entry = keys.mapping(container, "container")
            found[keys.text(entry, "name", "container")] = keys.text(entry, "image", "container")
    return found


def _unit(
    prefix: str, document: Mapping[str, object], images: Mapping[str, str], nodes: dict[str, Node], depth: int
) -> str:
    name = keys.text(document, "name", "unit")
    where = f"unit {name or '?'}"
    if not name:
        raise InvalidInput("a unit has no name")
    if depth > _DEEPEST or len(nodes) >= _MOST_UNITS:
        raise InvalidInput(f"{where}: a graph has at most {_MOST_UNITS} units, {_DEEPEST} below each other")
    key = prefix + name
    if key in nodes:
        raise InvalidInput(f"{where}: two units have this name")
    implementation = keys.text(document, "implementation", where)
    if implementation == "UNKNOWN_IMPLEMENTATION":
        implementation = ""
    implementation = implementation or _known_image(images.get(name, ""))
    kind = keys.text(document, "type", where) or _TYPE_OF.get(implementation, MODEL)
    if kind == "UNKNOWN_TYPE":
        kind = MODEL
    if kind not in TYPES:
        raise InvalidInput(f"{where}: type is {kind!r}; one of {', '.join(TYPES)}")
    nodes[key] = Node(key, UNIT, ())
    parameters = dict(_parameters(document, where))
    children = [
        _unit(prefix, keys.mapping(each, f"{where}: child"), images, nodes, depth + 1)
        for each in keys.items(document.get("children"), f"{where}: children")
    ]
    _check_children(where, kind, implementation, len(children))
    bandit = _bandit(where, implementation, parameters, len(children))
    answers_itself = implementation in _TYPE_OF
    call = Step(name, Target(BUILT_IN, implementation) if answers_itself else _target(name, document, where))
    nodes[key] = Node(
        key,
        UNIT,
        tuple(Step(child.removeprefix(prefix), Target(NODE, child)) for child in children),
        bandit=bandit,
        unit=Unit(kind, implementation, call, _share(parameters, "ratioA", 0.5, where), parameters),
    )
    return key


def _known_image(image: str) -> str:
    plain = image.lower().replace("_", "-")
    if "epsilon-greedy" in plain:
        return EPSILON_GREEDY
    return THOMPSON if "thompson" in plain else ""


def _check_children(where: str, kind: str, implementation: str, count: int) -> None:
    if kind == ROUTER and not count:
        raise InvalidInput(f"{where}: a ROUTER has children to choose among")
    if kind == COMBINER and not count:
        raise InvalidInput(f"{where}: a COMBINER has children to combine")
    if implementation == RANDOM_ABTEST and count != 2:
        raise InvalidInput(f"{where}: RANDOM_ABTEST has two children, not {count}")
    if kind not in (ROUTER, COMBINER) and count > 1:
        raise InvalidInput(f"{where}: a {kind} has one child, not {count}; put a COMBINER or a ROUTER between them")


def _parameters(document: Mapping[str, object], where: str) -> Iterator[tuple[str, str]]:
    for each in keys.items(document.get("parameters"), f"{where}: parameters"):
        entry = keys.mapping(each, f"{where}: parameter")
        yield keys.text(entry, "name", where), keys.text(entry, "value", where)


def _share(parameters: Mapping[str, str], name: str, default: float, where: str) -> float:
    try:
        value = float(parameters.get(name, default))
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise InvalidInput(f"{where}: {name} is {parameters[name]!r}; a number between 0 and 1")
    return value


def _bandit(where: str, implementation: str, parameters: Mapping[str, str], count: int) -> Bandit | None:
    if implementation not in (EPSILON_GREEDY, THOMPSON):
        return None
    declared = parameters.get("n_branches", "")
    if declared and declared != str(count):
        raise InvalidInput(f"{where}: n_branches is {declared}, and there are {count} children")
    best = parameters.get("best_branch", "0")
    if not best.isdecimal() or int(best[:9]) >= count:
        raise InvalidInput(f"{where}: best_branch is {best!r}; there are the branches 0 to {count - 1}")
    seed = parameters.get("seed", "")
    return Bandit(
        "thompson" if implementation == THOMPSON else "epsilon-greedy",
        _share(parameters, "epsilon", 0.1, where),
        int(best),
        int(seed) if seed.isdecimal() and len(seed) < 19 else None,
    )


def _target(name: str, document: Mapping[str, object], where: str) -> Target:
    endpoint = keys.mapping(document.get("endpoint") or {}, f"{where}: endpoint")
    host = keys.text(endpoint, "service_host", where)
    if not host:
        return Target(SERVICE, name)
    if endpoint.get("type") not in (None, "REST"):
        raise InvalidInput(f"{where}: endpoint.type is {endpoint['type']!r}; only REST is here")
    port = keys.whole(
        endpoint, "service_port", where, keys.whole(endpoint, "httpPort", where, 9000, most=65535), most=65535
    )
    if not re.fullmatch(r"[\w.:\[\]-]+", host):
        raise InvalidInput(f"{where}: service_host is {host!r}")
    return Target(URL, f"http://{host}:{port}")
