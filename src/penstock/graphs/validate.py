"""What of a graph cannot work, found before it answers anything: each fault in one line, with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from penstock.core.graph_calls import TENSORS
from penstock.core.servable import Signature
from penstock.core.tensor import TensorSpec
from penstock.graphs.definition import (
    DATAFLOW,
    ENSEMBLE,
    MODEL,
    NODE,
    SEQUENCE,
    SERVICE,
    SWITCH,
    Graph,
    Node,
    Step,
)

# Looking at a graph, drawing it and running it go this way too: without a bound, 30 nodes that each lead twice to the
# next one are a billion steps.
_MOST_STEPS, _DEEPEST = 10_000, 100

SignatureOf = Callable[[str, str], Signature | None]
"""The signature of a model and version; None where it is not known."""


def problems(graph: Graph, signature_of: SignatureOf | None = None) -> list[str]:
    """Everything that is wrong: nodes that are not there, cycles, nodes that nothing leads to, and with `signature_of`
    tensors that do not exist or do not fit. Empty when the graph can work, as far as that can be known."""
    found = [*_unknown(graph)]
    if found:
        return found
    cycle = cycle_of({name: [s.target.name for s in node.steps if s.target.kind == NODE] for name, node in
                      graph.nodes.items()})  # fmt: skip
    if cycle:
        return [f"the nodes {' → '.join(cycle)} lead to each other in a circle"]
    most, depth = _extent(graph)
    if most > _MOST_STEPS or depth > _DEEPEST:
        return [
            f"a request may pass {most} steps in nodes {depth} deep; at most {_MOST_STEPS} steps, {_DEEPEST} deep: a "
            "node that several steps lead to counts for each of them"
        ]
    found += [f"nothing leads to node {name!r}" for name in graph.nodes if name not in _reached(graph)]
    if graph.level == TENSORS:
        found += _flow(graph, signature_of or (lambda model, version: None))
    return found


def cycle_of(edges: Mapping[str, list[str]]) -> list[str]:
    """A circle in a directed graph, its first name also last; empty without one."""
    done: set[str] = set()
    for start in edges:
        path: list[str] = []
        on_path: dict[str, int] = {}
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            name, at = stack.pop()
            if at == 0:
                if name in done:
                    continue
                on_path[name] = len(path)
                path.append(name)
            following = edges.get(name, [])
            if at < len(following):
                stack.append((name, at + 1))
                target = following[at]
                if target in on_path:
                    return [*path[on_path[target] :], target]
                if target not in done:
                    stack.append((target, 0))
            else:
                done.add(name)
                del on_path[path.pop()]
    return []


def _unknown(graph: Graph) -> Iterator[str]:
    for name, node in graph.nodes.items():
        for step in node.steps:
            if step.target.kind == NODE and step.target.name not in graph.nodes:
                yield (
                    f"node {name!r} step {step.name!r} leads to node {step.target.name!r}, which is not there; "
                    f"nodes: {', '.join(graph.nodes)}"
                )
    if graph.root not in graph.nodes:
        yield f"the root node {graph.root!r} is not there"


def _extent(graph: Graph) -> tuple[int, int]:
    """The steps that a request may pass, and how deep nodes lie in each other. Of a graph without circles."""
    known: dict[str, tuple[int, int]] = {}
    waiting = [graph.root]
    while waiting:
        node = graph.nodes[waiting[-1]]
        inside = [step.target.name for step in node.steps if step.target.kind == NODE]
        if lacking := [name for name in inside if name not in known]:
            waiting += lacking
            continue
        waiting.pop()
        steps = len(node.steps) + sum(known[name][0] for name in inside)
        known[node.name] = steps, 1 + max((known[name][1] for name in inside), default=0)
    return known[graph.root]


def _reached(graph: Graph) -> set[str]:
    reached: set[str] = set()
    waiting = [graph.root]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [step.target.name for step in graph.nodes[name].steps if step.target.kind == NODE]
    return reached


# --- tensors ---

Values = dict[str, TensorSpec | None]
"""The values known at a place: their specs, None where only the name is known."""


class _Flow:
    """Follows values along the arrows. `certain` turns false behind a step whose outputs nobody knows: from there on a
    name that was not seen may still exist."""

    def __init__(self, graph: Graph, signature_of: SignatureOf) -> None:
        self.graph = graph
        self.signature_of = signature_of
        self.certain = bool(graph.inputs)
        self.found: list[str] = []

    def node(self, node: Node, known: Values) -> Values:
        """What the node adds."""
        if node.kind == DATAFLOW:
            return self.dataflow(node, known)
        added: list[Values] = []
        here = dict(known)
        for step in node.steps:
            if step.when is not None:
                self.condition(node, step, here)
            given = self.step(node, step, here)
            added.append(given)
            if node.kind == SEQUENCE:
                here.update(given)
        if node.kind == SEQUENCE:
            return {name: spec for each in added for name, spec in each.items()}
        if node.kind == ENSEMBLE and not node.combine:
            return self.together(node, added)
        common = set(added[0]).intersection(*added[1:])
        if node.combiner is not None:
            wide = {**known, **{f"{step.name}.{name}": spec for step, each in zip(node.steps, added, strict=True)
                                for name, spec in each.items()}}  # fmt: skip
            return self.step(node, node.combiner, wide)
        for name in sorted(common):
            self.alike(node, name, [each[name] for each in added])
        if node.combine and not common and self.certain:
            self.found.append(f"node {node.name!r} makes the {node.combine} of steps that have no output in common")
        return {name: spec for name, spec in added[0].items() if name in common}

    def together(self, node: Node, added: list[Values]) -> Values:
        out: Values = {}
        makers: dict[str, str] = {}
        for step, values in zip(node.steps, added, strict=True):
            for name, spec in values.items():
                if name in makers:
                    self.found.append(
                        f"node {node.name!r}: the steps {makers[name]!r} and {step.name!r} both give {name!r}; "
                        "map one with `outputs`, or say how to `combine` them"
                    )
                makers[name] = step.name
                out[name] = spec
        return out

    def alike(self, node: Node, name: str, specs: list[TensorSpec | None]) -> None:
        kinds = {spec.datatype for spec in specs if spec is not None}
        if len(kinds) > 1:
            self.found.append(
                f"node {node.name!r}: {name!r} is {' here and '.join(sorted(kinds))} there, as the step that ran says"
            )

    def condition(self, node: Node, step: Step, known: Values) -> None:
        assert step.when is not None
        if self.certain:
            for name in sorted(step.when.names() - set(known)):
                self.found.append(
                    f"node {node.name!r} step {step.name!r}: the condition {step.when.text!r} looks at {name!r}, "
                    f"which is not there; there are {', '.join(known) or 'none'}"
                )

    def step(self, node: Node, step: Step, known: Values) -> Values:
        if step.target.kind == NODE:
            return self.node(self.graph.nodes[step.target.name], known)
        signature = (
            self.signature_of(step.target.name, step.target.version) if step.target.kind in (MODEL, SERVICE) else None
        )
        where = f"node {node.name!r} step {step.name!r} ({step.target})"
        if signature is None:
            for tensor, value in step.inputs.items():
                if value not in known and self.certain:
                    self.missing(where, tensor, value, known)
            if not step.outputs:
                self.certain = False
            return dict.fromkeys(step.outputs.values())
        self.inputs(where, step, signature, known)
        outputs = {spec.name: spec for spec in signature.outputs}
        if not outputs:
            if not step.outputs:
                self.certain = False
            return dict.fromkeys(step.outputs.values())
        for tensor in step.outputs:
            if tensor not in outputs:
                self.found.append(f"{where}: the model has no output {tensor!r}; it has {', '.join(outputs)}")
        if step.outputs:
            return {value: _renamed(outputs.get(tensor), value) for tensor, value in step.outputs.items()}
        return dict(outputs)

    def inputs(self, where: str, step: Step, signature: Signature, known: Values) -> None:
        if not signature.inputs:
            return
        specs = {spec.name: spec for spec in signature.inputs}
        for tensor in step.inputs:
            if tensor not in specs:
                self.found.append(f"{where}: the model has no input {tensor!r}; it has {', '.join(specs)}")
        for name, spec in specs.items():
            value = step.inputs.get(name, "" if step.inputs else name)
            if value in known:
                self.fits(where, spec, value, known[value])
            elif not spec.optional and (self.certain or (step.inputs and not value)):
                self.missing(where, name, value or name, known)

    def missing(self, where: str, tensor: str, value: str, known: Values) -> None:
        self.found.append(
            f"{where}: its input {tensor!r} has no value {value!r} here; there are {', '.join(known) or 'none'}"
        )

    def fits(self, where: str, spec: TensorSpec, value: str, given: TensorSpec | None) -> None:
        if given is None:
            return
        if spec.datatype != given.datatype:
            self.found.append(f"{where}: its input {spec.name!r} is {spec.datatype}, and {value!r} is {given.datatype}")
        elif len(spec.shape) != len(given.shape) or any(
            -1 not in (one, other) and one != other for one, other in zip(spec.shape, given.shape, strict=True)
        ):
            self.found.append(
                f"{where}: its input {spec.name!r} has the shape {list(spec.shape)}, and {value!r} {list(given.shape)}"
            )

    def dataflow(self, node: Node, known: Values) -> Values:
        """In the order in which the steps can run. What is left over waits for itself or for nothing."""
        here = dict(known)
        waiting = list(node.steps)
        while ready := [step for step in waiting if all(value in here for value in step.inputs.values())]:
            for step in ready:
                here.update(self.step(node, step, here))
            waiting = [step for step in waiting if step not in ready]
        for step in waiting:
            lacking = [value for value in step.inputs.values() if value not in here]
            made = [other.name for other in waiting if set(other.outputs.values()) & set(lacking)]
            why = f"which comes from {', '.join(made)}: a circle" if made else "which nothing gives"
            self.found.append(f"step {step.name!r} waits for {', '.join(map(repr, lacking))}, {why}")
        used = {value for step in node.steps for value in step.inputs.values()}
        wanted = {spec.name for spec in self.graph.outputs}
        for step in node.steps:
            if not (used | wanted) & set(step.outputs.values()):
                self.found.append(f"nothing uses what step {step.name!r} gives")
        return here


def _flow(graph: Graph, signature_of: SignatureOf) -> list[str]:
    flow = _Flow(graph, signature_of)
    known: Values = {spec.name: spec for spec in graph.inputs}
    given = {**known, **flow.node(graph.nodes[graph.root], known)}
    for spec in graph.outputs:
        if spec.name not in given:
            if flow.certain:
                flow.found.append(f"the output {spec.name!r} is given by no step; there are {', '.join(given)}")
        elif (made := given[spec.name]) is not None and made.datatype != spec.datatype:
            flow.found.append(f"the output {spec.name!r} is declared {spec.datatype}, and is {made.datatype}")
        elif made is not None and (
            len(made.shape) != len(spec.shape)
            or any(-1 not in (one, other) and one != other for one, other in zip(made.shape, spec.shape, strict=True))
        ):
            flow.found.append(
                f"the output {spec.name!r} is declared with the shape {list(spec.shape)}, and has {list(made.shape)}"
            )
    return list(dict.fromkeys(flow.found))


def outputs_of(graph: Graph, signature_of: SignatureOf) -> tuple[TensorSpec, ...]:
    """What the graph gives: as declared, else what its steps add, where all of it is known and every step runs; empty
    where not."""
    if graph.outputs:
        return graph.outputs
    steps = [step for node in graph.nodes.values() if node.kind != SWITCH for step in node.steps]
    if any(step.when is not None or not step.hard for step in steps):
        return ()
    flow = _Flow(graph, signature_of)
    flow.certain = True
    given = flow.node(graph.nodes[graph.root], {spec.name: spec for spec in inputs_of(graph, signature_of)})
    specs = tuple(spec for spec in given.values() if spec is not None)
    return specs if flow.certain and len(specs) == len(given) else ()


def inputs_of(graph: Graph, signature_of: SignatureOf) -> tuple[TensorSpec, ...]:
    """What the graph takes: as declared, else what its first model takes, where that is one; empty where unknown."""
    if graph.inputs:
        return graph.inputs
    node = graph.nodes[graph.root]
    while node.kind == SEQUENCE and node.steps[0].target.kind == NODE:
        node = graph.nodes[node.steps[0].target.name]
    step = node.steps[0]
    if node.kind != SEQUENCE or step.target.kind != MODEL or step.inputs or step.when is not None:
        return ()
    signature = signature_of(step.target.name, step.target.version)
    return () if signature is None else signature.inputs


def _renamed(spec: TensorSpec | None, name: str) -> TensorSpec | None:
    return None if spec is None else TensorSpec(name, spec.datatype, spec.shape, labels=spec.labels)
