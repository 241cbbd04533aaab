"""What a graph is: nodes that say in which order, and steps that say what is asked.

Three levels, by what flows along the arrows. `TENSORS`: named values; a step reads its inputs from the values that are
known and adds its outputs to them. `BODIES`: whole HTTP bodies, passed on as they are (KServe). `MESSAGES`:
SeldonMessages (Seldon Core 1), whose nodes are units with children.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from penstock.core.tensor import TensorSpec
from penstock.graphs.conditions import Condition

SEQUENCE = "sequence"  # one after the other
SWITCH = "switch"  # the first whose condition holds
ENSEMBLE = "ensemble"  # all at once
SPLITTER = "splitter"  # one, by weight
ROUTER = "router"  # one, by a bandit that learns from rewards
DATAFLOW = "dataflow"  # each as soon as its inputs are there
UNIT = "unit"  # Seldon's: itself, then its children
KINDS = (SEQUENCE, SWITCH, ENSEMBLE, SPLITTER, ROUTER, DATAFLOW, UNIT)

MODEL = "model"  # of the same server
SERVICE = "service"  # of the same server if it has it, else another endpoint
ENDPOINT = "endpoint"  # another endpoint, by name
URL = "url"  # any server, by address
NODE = "node"  # another node of the graph
BUILT_IN = "built-in"  # nothing is asked: the node answers by itself


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked. `version` is "" for the default."""

    kind: str
    name: str
    version: str = ""

    def __str__(self) -> str:
        return self.name if self.kind == URL else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Step:
    """One question. `name` is what failures, times and outputs call it, one of its kind in its node.

    `inputs` and `outputs` map the target's tensor names to names of values; with empty maps the names are the same.
    """

    name: str
    target: Target
    when: Condition | None = None  # TENSORS
    path: str = ""  # BODIES: the GJSON path that must exist
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0
    hard: bool = True  # its failure is the graph's
    timeout_s: float | None = None  # of all its tries together
    retries: int = 0  # of failures that may pass
    response: bool = False  # BODIES: takes the body before it, not the request's
    map_predictions: bool = False  # BODIES: `predictions` before it become its `instances`


@dataclass(frozen=True, slots=True)
class Bandit:
    """How a ROUTER learns. `policy` is epsilon-greedy or thompson."""

    policy: str
    epsilon: float = 0.1
    best: int = 0  # the way taken while nothing is known
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """What a UNIT does besides its children. `call` is who is asked, if anybody."""

    type: str  # MODEL, ROUTER, COMBINER, TRANSFORMER, OUTPUT_TRANSFORMER
    implementation: str = ""
    call: Step | None = None
    ratio_a: float = 0.5  # RANDOM_ABTEST
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Node:
    """Steps and what is done with them. `combine` is "", average, majority, or the name of a step's target that is
    given every answer (`combiner`)."""

    name: str
    kind: str
    steps: tuple[Step, ...]
    combine: str = ""
    combiner: Step | None = None
    bandit: Bandit | None = None
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole graph. `inputs` and `outputs` are declared; without, they are what the steps take and give."""

    name: str
    level: str
    root: str
    nodes: Mapping[str, Node]
    dialect: str  # native, kserve, seldon, triton
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    timeout_s: float | None = None  # of a request that brings no deadline
    concurrency: int = 256  # requests in the graph at once; more wait in its queue
    propagate: tuple[str, ...] = ()  # BODIES, MESSAGES: header names that steps get too, as regular expressions
    batchable: bool | None = None  # None: as its models
    notes: tuple[str, ...] = ()  # what of the file has no effect here

    def calls(self) -> Iterator[tuple[Node, Step]]:
        """Every step that asks somebody, with its node."""
        for node in self.nodes.values():
            for step in (*node.steps, *own_calls(node)):
                if step.target.kind not in (NODE, BUILT_IN):
                    yield node, step

    def models(self) -> tuple[str, ...]:
        """The names of models that must be in the same server, or are asked there if they are, each once."""
        return tuple(
            dict.fromkeys(step.target.name for _, step in self.calls() if step.target.kind in (MODEL, SERVICE))
        )


def own_calls(node: Node) -> tuple[Step, ...]:
    """The steps that a node asks besides those it chooses among."""
    found = [node.combiner] if node.combiner is not None else []
    if node.unit is not None and node.unit.call is not None:
        found.append(node.unit.call)
    return tuple(found)
