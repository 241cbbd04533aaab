"""One request on its way through a graph: how long it may take, what it brings along, what happened at each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.core.messages import Parameter
from penstock.core.trace import TraceContext


@dataclass(slots=True)
class Journey:
    """`deadline` is monotonic seconds. `times` are (step, seconds) in the order in which they ended."""

    deadline: float
    parameters: Mapping[str, Parameter]
    trace: TraceContext | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # of the caller, that steps get too
    times: list[tuple[str, float]] = field(default_factory=list)
    routes: dict[str, int] = field(default_factory=dict)  # by router node: the way that was taken

    def until(self, deadline: float) -> Journey:
        """The same journey with less time; what happens on it is noted in the same lists."""
        return Journey(deadline, self.parameters, self.trace, self.headers, self.times, self.routes)
