"""KServe's InferenceGraph, v1alpha1, as it is written for a cluster.

What only a cluster has a use for (resources, affinity, tolerations, replicas) is read and has no effect; so that nobody
is misled, `Graph.notes` names it. Headers go on to steps only where listed: KServe lists them for a whole cluster, here
the annotation `penstock/propagate-headers` does for a graph, as regular expressions separated by commas.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from penstock.core.errors import InvalidInput
from penstock.core.graph_calls import BODIES
from penstock.graphs import gjson, keys
from penstock.graphs.definition import (
    ENSEMBLE,
    NODE,
    SEQUENCE,
    SERVICE,
    SPLITTER,
    SWITCH,
    URL,
    Graph,
    Node,
    Step,
    Target,
)

ROOT: Final = "root"
PROPAGATE: Final = "penstock/propagate-headers"
_ROUTERS: Final = {"Sequence": SEQUENCE, "Switch": SWITCH, "Ensemble": ENSEMBLE, "Splitter": SPLITTER}
_NO_EFFECT: Final = (
    "resources", "affinity", "nodeSelector", "nodeName", "tolerations", "minReplicas", "maxReplicas", "scaleTarget",
    "scaleMetric", "imagePullSecrets", "serviceAccountName",
)  # fmt: skip
_STEP: Final = (
    "name", "nodeName", "serviceName", "serviceUrl", "data", "weight", "condition", "dependency",
    "mapPredictionsToInstances",
)  # fmt: skip
_MOST_NODES = 1000


def read(document: Mapping[str, object], name: str) -> Graph:
    """The graph of a document. Raises: InvalidInput."""
    version = keys.text(document, "apiVersion", "graph")
    if version != "serving.kserve.io/v1alpha1":
        raise InvalidInput(f"an InferenceGraph of apiVersion {version!r}; serving.kserve.io/v1alpha1 is known")
    keys.known(document, ("apiVersion", "kind", "metadata", "spec", "status"), "graph")
    metadata = keys.mapping(document.get("metadata") or {}, "metadata")
    spec = keys.mapping(document.get("spec"), "spec")
    keys.known(spec, ("nodes", "timeout", "routerTimeouts", *_NO_EFFECT), "spec")
    written = keys.mapping(spec.get("nodes"), "spec.nodes")
    if ROOT not in written:
        raise InvalidInput(
            f"spec.nodes has no {ROOT!r}, where every graph begins; it has {', '.join(written) or 'none'}"
        )
    if len(written) > _MOST_NODES:
        raise InvalidInput(f"spec.nodes holds {len(written)} nodes; at most {_MOST_NODES}")
    timeout_s = keys.number(spec, "timeout", "spec", above=True)
    timeouts = keys.mapping(spec.get("routerTimeouts") or {}, "spec.routerTimeouts")
    notes = [f"spec.{key}" for key in _NO_EFFECT if key in spec] + [f"spec.routerTimeouts.{key}" for key in timeouts]
    annotations = keys.mapping(metadata.get("annotations") or {}, "metadata.annotations")
    return Graph(
        keys.text(metadata, "name", "metadata", name),
        BODIES,
        ROOT,
        {each: _node(each, body) for each, body in written.items()},
        "kserve",
        timeout_s=timeout_s,
        propagate=header_patterns(str(annotations.get(PROPAGATE, ""))),
        batchable=False,
        notes=tuple(notes),
    )


def header_patterns(text: str) -> tuple[str, ...]:
    """The regular expressions of a list with commas, each checked. Raises: InvalidInput."""
    patterns = tuple(each.strip() for each in text.split(",") if each.strip())
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidInput(f"the header pattern {pattern!r} is no regular expression: {error}") from None
    return patterns


def _node(name: str, body: object) -> Node:
    where = f"node {name}"
    document = keys.mapping(body, where)
    keys.known(document, ("routerType", "steps"), where)
    router = keys.text(document, "routerType", where)
    if router not in _ROUTERS:
        raise InvalidInput(f"{where}: routerType is {router!r}; one of {', '.join(_ROUTERS)}")
    kind = _ROUTERS[router]
    written = keys.items(document.get("steps"), f"{where} steps")
    if not written:
        raise InvalidInput(f"{where}: a {router} has at least one step")
    steps = tuple(_step(kind, where, index, each) for index, each in enumerate(written))
    if kind == SPLITTER and (total := sum(step.weight for step in steps)) != 100:
        raise InvalidInput(f"{where}: the weights of a Splitter add up to 100, these to {total:g}")
    if kind == ENSEMBLE:
        names = [step.name for step in steps]
        for twice in {each for each in names if names.count(each) > 1}:
            raise InvalidInput(f"{where}: two steps are called {twice!r}, and the answer has one place for each name")
    return Node(name, kind, steps)


def _step(kind: str, node: str, index: int, body: object) -> Step:
    where = f"{node} step {index}"
    document = keys.mapping(body, where)
    keys.known(document, _STEP, where)
    condition = keys.text(document, "condition", where)
    if condition:
        gjson.read(condition)
    if kind == SWITCH and not condition:
        raise InvalidInput(f"{where}: a step of a Switch has a condition")
    weight = keys.number(document, "weight", where)
    if kind == SPLITTER and weight is None:
        raise InvalidInput(f"{where}: a step of a Splitter has a weight")
    dependency = keys.text(document, "dependency", where, "Soft")
    if dependency not in ("Soft", "Hard"):
        raise InvalidInput(f"{where}: dependency is {dependency!r}; Soft or Hard")
    data = keys.text(document, "data", where, "$request")
    if data not in ("$request", "$response"):
        raise InvalidInput(f"{where}: data is {data!r}; $request or $response")
    return Step(
        keys.text(document, "name", where) or str(index),
        _target(document, where),
        path=condition,
        weight=1.0 if weight is None else weight,
        hard=dependency == "Hard",
        response=data == "$response",
        map_predictions=bool(document.get("mapPredictionsToInstances")),
    )


def _target(document: Mapping[str, object], where: str) -> Target:
    given = [key for key in ("nodeName", "serviceName", "serviceUrl") if document.get(key)]
    if given == ["serviceName", "serviceUrl"]:
        given = ["serviceUrl"]  # as KServe's controller leaves them: the address that it found for the name
    if len(given) != 1:
        raise InvalidInput(f"{where}: give one of nodeName, serviceName, serviceUrl, not {', '.join(given) or 'none'}")
    text = keys.text(document, given[0], where)
    if given[0] == "nodeName":
        return Target(NODE, text)
    if given[0] == "serviceName":
        return Target(SERVICE, text)
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text):
        raise InvalidInput(f"{where}: serviceUrl is {text!r}; write it like http://host/v1/models/NAME:predict")
    return Target(URL, text)
