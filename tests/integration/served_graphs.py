"""The graphs that tests serve, and a request to one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import penstock

MODELS = Path(__file__).parents[1] / "graph_models.py"
HEAD = 'kind: Graph\ninputs: {x: "f8[n, 2]"}\n'
GRAPHS = {
    "chain": HEAD + 'outputs: {total: "f8[n]"}\n' + """
sequence:
  - {model: double, outputs: {y: doubled}}
  - {model: total, inputs: {x: doubled}}
""",
    "choice": HEAD + """
switch:
  - {when: max(x) > 10, model: double}
  - {when: min(x) < 0, model: add_one, name: plus}
""",
    "vote": HEAD + """
ensemble:
  - {model: double}
  - {model: add_one}
  - {model: fail_above_100, dependency: soft}
combine: average
""",
    "failing": HEAD + """
sequence:
  - {model: double, outputs: {y: x}}
  - {name: picky, model: fail_above_100}
""",
    "timed": HEAD + "sequence: [{name: nap, model: sleepy, timeout_s: 0.2}]\n",
    "naps": HEAD + "sequence: [{name: nap, model: sleepy}, {name: again, model: sleepy, inputs: {x: y}}]\n",
    "learning": HEAD + """
router: [{model: double}, {model: add_one}]
policy: epsilon-greedy
epsilon: 0.0
seed: 7
""",
    "changed": HEAD + """
sequence:
  - model: double
    before: {model: add_one, outputs: {y: x}}
    after: {model: total, inputs: {x: y}}
""",
    "fan": HEAD + "timeout_s: 30\n" + """
ensemble:
  - {model: small_a, outputs: {y: a}}
  - {model: small_b, outputs: {y: b}}
  - sequence: [{model: small_a, name: again, outputs: {y: c}}, {model: small_b, name: last, inputs: {x: c}, outputs: {y: c}}]
""",
}  # fmt: skip


def ask(client: penstock.Client, graph: str, *rows: list[float], **more: Any) -> penstock.client.Result:
    return client.infer(graph, {"x": np.array(rows, np.float64)}, **more)
