"""What a server itself counts of one model's requests, in the forms that V2 servers offer.

Only differences between two readings mean anything: who else asked before is counted too.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from typing import Final

from penstock.client import Client
from penstock.core.errors import PenstockError
from penstock.ledger.book import Target

_TIMEOUT_S: Final = 5.0
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)(?: \d+)?$", re.MULTILINE)
_STARTED: Final = re.compile(r"^process_start_time_seconds (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
# Servers' own names for answered and failed inferences; all carry the model's name in one of these labels.
# Sources: Triton's and MLServer's documentation of their metrics.
_SUCCESSES: Final = ("nv_inference_request_success", "model_infer_request_success_total")
_FAILURES: Final = ("nv_inference_request_failure", "model_infer_request_failure_total")
_MODEL_LABELS: Final = ("model", "model_name")


@dataclass(frozen=True, slots=True)
class Counters:
    """Requests of one model since the server started. None is what this server does not say. `ended` and `held` tell
    whether it is quiet."""

    source: str
    successes: int
    ended: int | None = None  # in any way
    held: int | None = None  # in the server right now
    since: float | None = None  # when its process started, in seconds of the epoch


def read(target: Target) -> Counters | None:
    """What the server counts; None when it offers nothing that is understood, or does not answer. Blocks."""
    return understood(_metrics(target), target.model) or _statistics(target)


def understood(text: str, model: str) -> Counters | None:
    """What a Prometheus exposition says of one model; None when it says nothing that is understood."""
    started = _STARTED.search(text)
    try:
        counters = _penstock(text, model) or _prometheus(text, model)
        return replace(counters, since=float(started[1])) if counters and started else counters
    except (ValueError, OverflowError):  # a value that is no number, or has no end
        return None


def direct(target: Target) -> urllib.request.OpenerDirector:
    """Opens URLs with the target's TLS and without a proxy, whatever the environment says: as the load is sent."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if "https" in (target.url[:5], (target.metrics_url or "")[:5]):
        handlers.append(urllib.request.HTTPSHandler(context=target.tls.context()))
    return urllib.request.build_opener(*handlers)


def _metrics(target: Target) -> str:
    try:
        if target.metrics_url is not None:
            with direct(target).open(target.metrics_url, timeout=_TIMEOUT_S) as answer:
                return str(answer.read().decode(errors="replace"))
        with Client(target.url, api_key=target.api_key, tls=target.tls, timeout_s=_TIMEOUT_S, retries=0) as client:
            return client.metrics()
    except (OSError, urllib.error.URLError, PenstockError):
        return ""


def _samples(text: str, model: str) -> list[tuple[str, dict[str, str], float]]:
    found = []
    for name, labels, value in _SAMPLE.findall(text):
        label = dict(_LABEL.findall(labels))
        if any(label.get(key) == model for key in _MODEL_LABELS):
            found.append((name, label, float(value)))
    return found


def _penstock(text: str, model: str) -> Counters | None:
    successes = ended = held = 0.0
    seen = False
    for name, label, value in _samples(text, model):
        if name == "penstock_requests_total":
            seen = True
            ended += value
            successes += value if label.get("outcome") == "success" else 0
        elif name in ("penstock_requests_in_flight", "penstock_requests_queued"):
            held += value
    return Counters("penstock_requests_total", int(successes), int(ended), int(held)) if seen else None


def _prometheus(text: str, model: str) -> Counters | None:
    successes = failures = 0.0
    source = ""
    for name, _, value in _samples(text, model):
        if name in _SUCCESSES:
            source, successes = name, successes + value
        elif name in _FAILURES:
            failures += value
    return Counters(source, int(successes), int(successes + failures)) if source else None


def _statistics(target: Target) -> Counters | None:
    try:
        with Client(target.url, api_key=target.api_key, tls=target.tls, timeout_s=_TIMEOUT_S, retries=0) as client:
            versions = client.statistics(target.model)
    except PenstockError:
        return None
    if not versions:
        return None
    successes = sum(one.success.count for one in versions)
    return Counters("V2 statistics", successes, successes + sum(one.fail.count for one in versions))
