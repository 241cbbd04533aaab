"""How a graph comes to be ready: its file read, its models waited for, everything checked against their signatures."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from penstock import config
from penstock.core.declare import rows_along_axis_0
from penstock.core.door import Door
from penstock.core.errors import LoadError, NotFound, NotReady, PenstockError
from penstock.core.graph_calls import LEVEL, TENSORS
from penstock.core.servable import Signature
from penstock.graphs import validate
from penstock.graphs.definition import (
    MODEL,
    SERVICE,
    Graph,
)
from penstock.runtime.artifact import Snapshot, artifact_sha256
from penstock.runtime.batching.batcher import Batcher
from penstock.runtime.batching.policy import BatchLimits
from penstock.runtime.disk import from_disk
from penstock.runtime.frameworks import check_options
from penstock.runtime.graphs import files
from penstock.runtime.graphs.calling import Calls
from penstock.runtime.graphs.contract import GraphCheck, body_signature
from penstock.runtime.graphs.executor import GraphExecutor
from penstock.runtime.graphs.remote import Remote
from penstock.runtime.version import LoadedVersion

OPTIONS = ("state",)  # the file in which a graph's routers keep what they learned

# Changes are announced; those before the server listens for them are found at the next look.
_LOOK_S = 0.25


async def bring_up(loaded: LoadedVersion, door: Door) -> None:
    """Makes `loaded` answer with its graph.

    Raises:
        LoadError: the graph cannot be read or cannot work, or a model that it needs is not here or failed.
    """
    began = time.monotonic()
    options = loaded.options
    snapshot = await from_disk(Snapshot, loaded.path)
    loaded.sha256 = await from_disk(artifact_sha256, loaded.path)
    if options.sha256 and options.sha256.get(str(loaded.number), "").lower() != loaded.sha256:
        raise LoadError(
            f"the content has SHA-256 {loaded.sha256}, which sha256 does not expect of version {loaded.number}"
        )
    graph = await from_disk(_read, loaded.path, loaded.name)
    if faults := validate.problems(graph):
        raise LoadError("; ".join(faults))
    check_options(options.options, OPTIONS, files.ADAPTER)
    environ = config.environment()
    remote = Remote(environ.get("PENSTOCK_ENDPOINTS_URL", ""), environ.get("PENSTOCK_ENDPOINTS_KEY", ""))
    here = await _services(graph, door, remote)
    signatures: dict[tuple[str, str], Signature] = {}
    for _, step in graph.calls():
        target = step.target
        if target.kind == MODEL or (target.kind == SERVICE and target.name in here):
            signatures[target.name, target.version] = await _ready(loaded.name, target.name, target.version, door)

    def signature_of(model: str, version: str) -> Signature | None:
        return signatures.get((model, version))

    if faults := validate.problems(graph, signature_of):
        raise LoadError("; ".join(faults))
    signature = _tensor_signature(graph, signature_of) if graph.level == TENSORS else body_signature(graph)
    loaded.signature = signature
    loaded.check = GraphCheck(signature)
    calls = Calls(door, remote, frozenset(here))
    loaded.graph = await from_disk(_executor, graph, signature, calls, str(options.options.get("state", "")))
    loaded.batcher = Batcher(
        loaded.name,
        str(loaded.number),
        BatchLimits(1, join=False),
        joinable=False,
        max_queue=options.max_queue,
        recorder=loaded.metrics,
        shed=options.shed,
    )
    loaded.use_current_executors()
    if name := await from_disk(snapshot.changed):
        raise LoadError(f"{name} changed while the graph was loaded; it is loaded again once it stays the same")
    loaded.loaded_s = time.monotonic() - began


def _read(path: Path, name: str) -> Graph:
    return files.read(path, name)


def _executor(graph: Graph, signature: Signature, calls: Calls, state: str) -> GraphExecutor:
    return GraphExecutor(graph, signature, calls, Path(state).expanduser() if state else None)


async def _services(graph: Graph, door: Door, remote: Remote) -> set[str]:
    """Which of the services that the graph names are models of this server.

    Raises:
        LoadError: one is not, and nobody said where other endpoints are.
    """
    wanted = {step.target.name for _, step in graph.calls() if step.target.kind == SERVICE}
    if not wanted:
        return set()
    here = {status.name for status in await door.index()} & wanted
    if (elsewhere := sorted(wanted - here)) and not remote.endpoints_url:
        raise LoadError(
            f"the graph asks {', '.join(elsewhere)}, which this server does not have; serve it beside the graph, "
            "or say with PENSTOCK_ENDPOINTS_URL where other endpoints are"
        )
    return here


async def _ready(graph: str, model: str, version: str, door: Door) -> Signature:
    """The signature of a model of this server, once it answers. Raises: LoadError."""
    if model == graph:
        raise LoadError(f"the graph asks the model '{model}', which is itself")
    while True:
        change = door.next_change()
        try:
            return door.signature(model, version)
        except NotFound as error:
            raise LoadError(f"the graph needs model '{model}': {error.message}", shortage=True) from None
        except NotReady:
            known = [status for status in await door.index() if status.name == model]
            if not known:
                raise LoadError(
                    f"the graph needs the model '{model}', which this server does not have", shortage=True
                ) from None
            if all(status.state in ("UNAVAILABLE", "") for status in known):
                reasons = "; ".join(status.reason for status in known if status.reason) or "it is not loaded"
                raise LoadError(f"the graph needs the model '{model}': {reasons}", shortage=True) from None
        except PenstockError as error:
            raise LoadError(f"the graph needs the model '{model}': {error.message}") from None
        await asyncio.wait({change}, timeout=_LOOK_S)


def _tensor_signature(graph: Graph, signature_of: validate.SignatureOf) -> Signature:
    inputs, outputs = validate.inputs_of(graph, signature_of), validate.outputs_of(graph, signature_of)
    batchable = graph.batchable
    if batchable is None:
        behind = [signature_of(step.target.name, step.target.version) for _, step in graph.calls()]
        batchable = all(each is not None and each.batchable for each in behind)
    return Signature(
        inputs,
        outputs,
        "ensemble" if graph.dialect == "triton" else "graph",
        batchable=batchable and rows_along_axis_0(*inputs, *outputs),
        concurrency=graph.concurrency,
        metadata={LEVEL: graph.level} if inputs else {LEVEL: graph.level, "dynamic": "true"},
    )
