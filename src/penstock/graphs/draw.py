"""A graph as a picture: an SVG laid out here, or the text of a Mermaid flow chart.

What is done one after the other goes from left to right, what is chosen among or done at once stands one below the
other. A node that several steps lead to is drawn where it is met first, and named at the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from penstock.graphs.definition import (
    BUILT_IN,
    DATAFLOW,
    ENSEMBLE,
    NODE,
    ROUTER,
    SEQUENCE,
    SPLITTER,
    SWITCH,
    UNIT,
    Graph,
    Node,
    Step,
)

_LINE, _CHARACTER = 16, 7.2  # pixels of a line of text and of one of its characters, at 12 pixels
_GAP_X, _GAP_Y, _PAD, _MOST_CHARACTERS = 44, 18, 12, 44
_FILL = {
    "end": "#e8eaed", "call": "#e3f2fd", SWITCH: "#fff3cd", SPLITTER: "#fde7e9", ROUTER: "#ede7f6",
    ENSEMBLE: "#e6f4ea", "combine": "#e6f4ea", "unit": "#e3f2fd", "again": "#f8f9fa",
}  # fmt: skip


@dataclass(slots=True)
class Box:
    """One box: lines of text, and where it comes to lie. `column` and `row` order the layout."""

    number: int
    lines: tuple[str, ...]
    look: str
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        return max(56.0, max(len(line) for line in self.lines) * _CHARACTER + 2 * _PAD)

    @property
    def height(self) -> float:
        return len(self.lines) * _LINE + _PAD


@dataclass(slots=True)
class Arrow:
    """From one box to another."""

    start: int
    end: int
    label: str = ""


@dataclass(slots=True)
class Picture:
    """Boxes and arrows with places, in pixels from the top left."""

    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


@dataclass(slots=True)
class _Part:
    """A piece of the picture: which boxes arrows come into and leave from, and how much room it takes."""

    entries: list[tuple[int, str]]  # box, label of the arrow into it
    exits: list[tuple[int, str]]
    width: float
    height: float
    members: list[tuple[Box, float, float]]  # with places inside the part


def picture(graph: Graph) -> Picture:
    """The laid out graph between "request" and "answer"."""
    return _Drawing(graph).whole()


def svg(graph: Graph) -> str:
    """The graph as an SVG document of its own."""
    drawn = picture(graph)
    boxes = {box.number: box for box in drawn.boxes}
    width, height = drawn.width, drawn.height
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12">',
        f"<title>{escape(graph.name)}</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#5f6368"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        f'<text x="{_PAD}" y="18" font-size="13" font-weight="bold" fill="#202124">{escape(_short(graph.name))}</text>',
    ]
    out += [_line(boxes[arrow.start], boxes[arrow.end], arrow.label) for arrow in drawn.arrows]
    out += [_rectangle(box) for box in drawn.boxes]
    return "\n".join([*out, "</svg>", ""])


def mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flow chart, which Markdown viewers draw."""
    drawn = picture(graph)
    out = ["flowchart LR"]
    for box in drawn.boxes:
        text = "<br/>".join(_quoted(line) for line in box.lines)
        opening, closing = ("([", "])") if box.look == "end" else ("{{", "}}") if box.look == SWITCH else ("[", "]")
        out.append(f'    b{box.number}{opening}"{text}"{closing}')
    for arrow in drawn.arrows:
        label = f'|"{_quoted(arrow.label)}"|' if arrow.label else ""
        out.append(f"    b{arrow.start} -->{label} b{arrow.end}")
    return "\n".join([*out, ""])


def _quoted(text: str) -> str:
    return text.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")


class _Drawing:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._picture = Picture()
        self._drawn: set[str] = set()

    def whole(self) -> Picture:
        parts = [
            self._box(("request",), "end"),
            self._node(self._graph.nodes[self._graph.root]),
            self._box(("answer",), "end"),
        ]
        part = self._row(parts)
        for box, x, y in part.members:
            box.x, box.y = x + _PAD, y + _PAD + _LINE + 6
        self._picture.width = part.width + 2 * _PAD
        self._picture.height = part.height + 2 * _PAD + _LINE + 6
        return self._picture

    # --- pieces ---

    def _box(self, lines: Sequence[str], look: str) -> _Part:
        box = Box(len(self._picture.boxes), tuple(_short(line) for line in lines), look)
        self._picture.boxes.append(box)
        return _Part([(box.number, "")], [(box.number, "")], box.width, box.height, [(box, 0.0, 0.0)])

    def _connect(self, one: _Part, other: _Part) -> None:
        for start, out_label in one.exits:
            for end, in_label in other.entries:
                self._picture.arrows.append(Arrow(start, end, in_label or out_label))

    def _row(self, parts: Sequence[_Part], *, connect: bool = True) -> _Part:
        """One behind the other."""
        height = max(part.height for part in parts)
        x, members = 0.0, []
        for index, part in enumerate(parts):
            if index:
                if connect:
                    self._connect(parts[index - 1], part)
                labels = [label for _, label in (*parts[index - 1].exits, *part.entries)]
                x += _GAP_X + min(max(map(len, labels), default=0), _MOST_CHARACTERS) * _CHARACTER
            members += [(box, x + left, (height - part.height) / 2 + top) for box, left, top in part.members]
            x += part.width
        return _Part(parts[0].entries, parts[-1].exits, x, height, members)

    def _stack(self, parts: Sequence[_Part]) -> _Part:
        """One below the other, none leading to another."""
        width = max(part.width for part in parts)
        y, members = 0.0, []
        for part in parts:
            members += [(box, left, y + top) for box, left, top in part.members]
            y += part.height + _GAP_Y
        entries = [entry for part in parts for entry in part.entries]
        exits = [each for part in parts for each in part.exits]
        return _Part(entries, exits, width, y - _GAP_Y, members)

    # --- the graph's parts ---

    def _step(self, step: Step) -> _Part:
        if step.target.kind == NODE:
            part = _labelled(self._node(self._graph.nodes[step.target.name]), _bounds(step))
        else:
            part = self._box(_said(step), "call")
        return _labelled(part, step.when.text if step.when is not None else step.path)

    def _node(self, node: Node) -> _Part:
        if node.name in self._drawn:
            return self._box((f"→ {node.name}",), "again")
        self._drawn.add(node.name)
        if node.kind == SEQUENCE:
            return self._row([self._step(step) for step in node.steps])
        if node.kind == DATAFLOW:
            return self._dataflow(node)
        if node.kind == UNIT:
            return self._unit(node)
        head = self._box(_head(node), node.kind)
        branches = [_labelled(self._step(step), _way(node, step)) for step in node.steps]
        parts = [head, self._stack(branches)]
        if node.combine:
            combiner = _said(node.combiner) if node.combiner is not None else (node.combine,)
            parts.append(self._box(("combine", *combiner), "combine"))
        return self._row(parts)

    def _unit(self, node: Node) -> _Part:
        unit = node.unit
        assert unit is not None
        kind = unit.type.lower().replace("_", " ")
        lines = [node.name, *([unit.implementation] if unit.implementation else [kind])]
        after = unit.type in ("COMBINER", "OUTPUT_TRANSFORMER")
        own = self._box(lines, ROUTER if unit.type == "ROUTER" else "combine" if after else "unit")
        if not node.steps:
            return own
        children = self._stack([_labelled(self._step(step), _way(node, step)) for step in node.steps])
        return self._row([children, own] if after else [own, children])

    def _dataflow(self, node: Node) -> _Part:
        """Columns by how many steps must have run before."""
        makers = {value: step for step in node.steps for value in step.outputs.values()}
        column: dict[str, int] = {}
        for _ in node.steps:  # as often as the longest chain can be
            for step in node.steps:
                before = [makers[value].name for value in step.inputs.values() if value in makers]
                column[step.name] = max((column.get(name, 0) + 1 for name in before), default=0)
                column[step.name] = min(column[step.name], len(node.steps))
        parts = {step.name: self._box(_said(step), "call") for step in node.steps}
        number = {name: part.entries[0][0] for name, part in parts.items()}
        stacks = [
            self._stack([parts[step.name] for step in node.steps if column[step.name] == each])
            for each in sorted(set(column.values()))
        ]
        leaves, arrows = set(number), self._picture.arrows
        for step in node.steps:
            for value in dict.fromkeys(step.inputs.values()):
                if value in makers:
                    arrows.append(Arrow(number[makers[value].name], number[step.name], value))
                    leaves.discard(makers[value].name)
        row = self._row(stacks, connect=False)
        wanted = {spec.name for spec in self._graph.outputs}
        for step in node.steps:
            if wanted & set(step.outputs.values()):
                leaves.add(step.name)
        given = {spec.name for spec in self._graph.inputs}
        row.entries = [
            (number[step.name], ", ".join(dict.fromkeys(v for v in step.inputs.values() if v in given)))
            for step in node.steps
            if not step.inputs or given & set(step.inputs.values())
        ] or [(number[node.steps[0].name], "")]
        row.exits = [(number[name], "") for name in parts if name in leaves]
        return row


def _labelled(part: _Part, label: str) -> _Part:
    if label:
        part.entries = [(number, label if not old else f"{label}, {old}") for number, old in part.entries]
    return part


def _said(step: Step) -> list[str]:
    """A step in a few short lines."""
    lines = [step.name]
    target = step.target
    if target.kind == BUILT_IN or target.name != step.name:
        lines.append(target.name if target.kind == BUILT_IN else str(target))
    elif target.version:
        lines.append(f"version {target.version}")
    bounds = _bounds(step)
    return [*lines, *([bounds] if bounds else [])]


def _bounds(step: Step) -> str:
    """How long, how often and how seriously a step is taken; "" for the usual."""
    more = []
    if step.timeout_s is not None:
        more.append(f"≤ {step.timeout_s:g} s")
    if step.retries:
        more.append(f"{step.retries} retries" if step.retries > 1 else "1 retry")
    if not step.hard:
        more.append("soft")
    return " · ".join(more)


def _head(node: Node) -> list[str]:
    lines = [node.kind]
    if node.bandit is not None:
        lines.append(node.bandit.policy)
    return lines if "." in node.name or node.name == "root" else [node.name, *lines]


def _way(node: Node, step: Step) -> str:
    """What stands at the arrow to a branch."""
    if node.kind == SPLITTER:
        total = sum(each.weight for each in node.steps) or 1.0
        return f"{100 * step.weight / total:.4g} %"
    if node.kind == SWITCH and step.when is None and not step.path:
        return "otherwise"
    return ""


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def _rectangle(box: Box) -> str:
    fill = _FILL.get(box.look, "#ffffff")
    radius = box.height / 2 if box.look == "end" else 5
    middle = box.x + box.width / 2
    out = [
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{radius:.1f}" '
        f'fill="{fill}" stroke="#5f6368"/>'
    ]
    for index, line in enumerate(box.lines):
        weight = ' font-weight="bold"' if index == 0 and len(box.lines) > 1 else ""
        y = box.y + _PAD / 2 + 12 + index * _LINE
        out.append(
            f'<text x="{middle:.1f}" y="{y:.1f}" text-anchor="middle" fill="#202124"{weight}>{escape(line)}</text>'
        )
    return "\n".join(out)


def _line(start: Box, end: Box, label: str) -> str:
    x1, y1 = start.x + start.width, start.y + start.height / 2
    x2, y2 = end.x, end.y + end.height / 2
    bend = (x1 + x2) / 2
    path = f"M{x1:.1f} {y1:.1f}C{bend:.1f} {y1:.1f} {bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    out = [f'<path d="{path}" fill="none" stroke="#5f6368" marker-end="url(#arrow)"/>']
    if label:
        out.append(
            f'<text x="{x2 - 8:.1f}" y="{y2 - 5:.1f}" text-anchor="end" font-size="11" fill="#5f6368">'
            f"{escape(_short(label))}</text>"
        )
    return "\n".join(out)
