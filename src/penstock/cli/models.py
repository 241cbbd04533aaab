"""`penstock models`: what a running server has loaded, and how it is doing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.connection import ApiKey, CaFile, ClientCert, ClientKey, Url, connect, tls_of
from penstock.cli.output import print_json, print_table
from penstock.client import Client
from penstock.core.door import VersionStatus
from penstock.core.errors import NotFound, NotReady

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    ca_file: CaFile = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
) -> None:
    """Lists what a running server has loaded, and how it is doing.

    p50 and p99 are over all requests since the version was loaded, from the buckets of the server's histogram.
    """
    with connect(url, api_key, tls_of(ca_file, client_cert, client_key)) as client:
        rows = [_row(client, entry) for entry in client.index()]
        with contextlib.suppress(NotFound):  # servers of other makes have their metrics elsewhere
            _add_latencies(rows, client.metrics())
    if as_json:
        print_json(rows)
    elif rows:
        shown = [{key: "" if value is None else value for key, value in row.items()} for row in rows]
        print_table(shown, right=["requests", "p50 ms", "p99 ms"])
    else:
        print("no models")


def _row(client: Client, entry: VersionStatus) -> dict[str, object]:
    """One version, as the index, its configuration and its statistics describe it."""
    row: dict[str, object] = {
        "model": entry.name, "version": entry.version, "state": entry.state or "never loaded", "adapter": "",
        "executor": "", "requests": None, "p50 ms": None, "p99 ms": None, "sha256": "", "path": "",
    }  # fmt: skip
    if entry.reason:
        row["state"] = f"{row['state']}: {entry.reason}"
    if entry.state != "READY" or not entry.version:  # a platform's deployment: `penstock status` tells of those
        return row
    try:
        config = client.config(entry.name, entry.version)
        (figures,) = client.statistics(entry.name, entry.version)
    except (NotFound, NotReady):  # it went away between the calls
        return row
    row |= {
        "adapter": config.get("backend", ""),
        "executor": _told(config, "executor"),
        "requests": figures.success.count,
        "sha256": _told(config, "sha256")[:12],
        "path": _told(config, "path"),
    }
    return row


def _told(config: Mapping[str, object], name: str) -> str:
    """A parameter of a Triton-style configuration."""
    parameters = config.get("parameters")
    value = parameters.get(name) if isinstance(parameters, dict) else None
    return str(value.get("string_value", "")) if isinstance(value, dict) else ""


def _add_latencies(rows: list[dict[str, object]], exposition: str) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    buckets: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for family in text_string_to_metric_families(exposition):
        if family.name == "penstock_request_seconds":
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    key = (sample.labels["model"], sample.labels["version"])
                    buckets.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
    for row in rows:
        counts = sorted(buckets.get((str(row["model"]), str(row["version"])), []))
        for title, share in (("p50 ms", 0.5), ("p99 ms", 0.99)):
            seconds = quantile(counts, share)
            if seconds is not None:
                row[title] = float(f"{seconds * 1e3:.3g}")


def quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """The quantile of a cumulative histogram of (upper bound, count so far), by linear interpolation inside the bucket;
    the largest finite bound where it lies beyond; None without observations.

    Source: PromQL's histogram_quantile.
    """
    total = buckets[-1][1] if buckets else 0
    if not total:
        return None
    wanted, low, before = share * total, 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (wanted - before) / (count - before) if count > before else bound
        low, before = bound, count
    return low
