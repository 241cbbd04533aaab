"""A replica that serves a graph reaches the platform's other endpoints by what its environment says."""

from __future__ import annotations

import asyncio
import dataclasses

from local_driver import Fleet, infer, replicas

from penstock.fleet.drivers import Launch
from penstock.fleet.drivers.local import Local
from penstock.fleet.spec import Run
from penstock.fleet.state import ReplicaState

__all__ = ["replicas"]

GRAPH = """
kind: Graph
inputs: {x: "f4[n]"}
outputs: {y: "f4[n]"}
sequence:
  - endpoint: deployed
    inputs: {x: x}
    outputs: {y: y}
"""


async def test_graph_calls_other_endpoints_of_the_platform(replicas: Fleet) -> None:
    other = await replicas.start("one", "double")
    settings = dataclasses.replace(replicas.settings, endpoints_url=f"http://{other.http}")
    await replicas.driver.close()
    replicas.driver = Local(settings, replicas.environ)
    await replicas.driver.adopt()
    file = replicas.folder / "graph.yaml"
    file.write_text(GRAPH)
    run = Run(graph=str(file))
    await replicas.driver.prepare(run)
    await replicas.driver.start(Launch("graph", "asking", 1, run))
    graph = await replicas.until("graph", ReplicaState.READY)
    assert await asyncio.to_thread(infer, graph, 1.5) == [3.0]
