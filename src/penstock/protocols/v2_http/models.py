"""What is here: server and model metadata, health, configuration, statistics."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from typing import Final

import orjson

from penstock.core.door import BatchTally, Door, Statistics, Tally
from penstock.core.model_config import model_config
from penstock.core.servable import Signature
from penstock.core.tensor import TensorSpec
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, Route

PATHS: Final = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")

# The extensions of Triton that work here. Missing: shared memory, and scheduling of sequences.
EXTENSIONS: Final = (
    "binary_tensor_data", "classification", "generate", "logging", "model_configuration", "model_repository",
    "parameters", "schedule_policy", "statistics", "trace",
)  # fmt: skip


def routes() -> Sequence[Route]:
    """The routes of this module."""
    per_model = [
        route
        for path in PATHS
        for route in (
            CallRoute("GET", path, model_metadata, "A model's inputs and outputs"),
            CallRoute("GET", f"{path}/ready", model_ready, "Whether a model answers"),
            CallRoute("GET", f"{path}/config", configuration, "A model's configuration in Triton's words"),
            CallRoute("GET", f"{path}/stats", statistics, "A model's figures since it was loaded"),
        )
    ]
    return [
        CallRoute("GET", "/v2", server_metadata, "The server's name, version and extensions"),
        CallRoute("GET", "/v2/health/live", live, "Whether the server runs", public=True),
        CallRoute("GET", "/v2/health/ready", ready, "Whether every model answers", public=True),
        CallRoute("GET", "/v2/models", model_names, "The models that answer"),
        CallRoute("GET", "/v2/models/stats", statistics, "The figures of all models"),
        *per_model,
    ]


async def server_metadata(http: HttpRequest, door: Door) -> HttpResponse:
    """The server's metadata."""
    return _json({"name": "penstock", "version": _version(), "extensions": EXTENSIONS})


async def live(http: HttpRequest, door: Door) -> HttpResponse:
    """200 or 503. Triton's clients look at the status, KServe's at the body."""
    return _json({"live": True}) if door.live() else _json({"live": False, "error": "the server is not live"}, 503)


async def ready(http: HttpRequest, door: Door) -> HttpResponse:
    """200 or 503. Triton answers 400, but its client takes anything but 200 for "not ready", and KServe's client and
    every load balancer know 503."""
    return _json({"ready": True}) if door.ready() else _json({"ready": False, "error": "the server is not ready"}, 503)


async def model_ready(http: HttpRequest, door: Door) -> HttpResponse:
    """200 or 503, with a body that KServe's clients read. Raises: NotFound."""
    model = http.match["model"]
    if door.model_ready(model, http.match.get("version", "")):
        return _json({"name": model, "ready": True})
    return _json({"name": model, "ready": False, "error": f"model '{model}' is not ready"}, 503)


async def model_names(http: HttpRequest, door: Door) -> HttpResponse:
    """KServe's list; Triton has none."""
    return _json({"models": door.models()})


async def model_metadata(http: HttpRequest, door: Door) -> HttpResponse:
    """Raises: NotFound, NotReady."""
    description = door.describe(http.match["model"], http.match.get("version", ""))
    signature: Signature = description.signature
    return _json(
        {
            "name": description.name,
            "versions": [str(version) for version in description.versions],
            "platform": signature.platform,
            "inputs": [_tensor(spec) for spec in signature.inputs],
            "outputs": [_tensor(spec) for spec in signature.outputs],
        }
    )


async def configuration(http: HttpRequest, door: Door) -> HttpResponse:
    """Raises: NotFound, NotReady."""
    return _json(model_config(door.describe(http.match["model"], http.match.get("version", ""))))


async def statistics(http: HttpRequest, door: Door) -> HttpResponse:
    """Raises: NotFound."""
    figures = await door.statistics(http.match.get("model", ""), http.match.get("version", ""))
    return _json({"model_stats": [_figures(item) for item in figures]})


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _tally(tally: Tally) -> dict[str, int]:
    return {"count": tally.count, "ns": tally.ns}


def _batch(rows: int, tally: BatchTally) -> dict[str, object]:
    return {
        "batch_size": rows,
        "compute_input": _tally(tally.compute_input),
        "compute_infer": _tally(tally.compute_infer),
        "compute_output": _tally(tally.compute_output),
    }


def _figures(item: Statistics) -> dict[str, object]:
    nothing = {"count": 0, "ns": 0}  # there is no response cache
    return {
        "name": item.name,
        "version": item.version,
        "last_inference": item.last_inference_ms,
        "inference_count": item.inference_count,
        "execution_count": item.execution_count,
        "inference_stats": {
            "success": _tally(item.success),
            "fail": _tally(item.fail),
            "queue": _tally(item.queue),
            "compute_input": _tally(item.compute_input),
            "compute_infer": _tally(item.compute_infer),
            "compute_output": _tally(item.compute_output),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [_batch(rows, tally) for rows, tally in sorted(item.batches.items())],
        "memory_usage": [],
        "response_stats": {},
        # Beyond the protocol: what Triton has no words for.
        "executor": item.executor,
        "in_flight": item.in_flight,
        "queued": item.queued,
        "workers": item.workers,
    }


def _json(document: object, status: int = 200) -> HttpResponse:
    return HttpResponse(status, orjson.dumps(document))


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("penstock")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was not installed
        return "0"
