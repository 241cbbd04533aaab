"""`penstock bench MODEL`: how many requests a second, how long each takes, and where the server spends that time."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from penstock.cli import inputs, load
from penstock.cli.command import Command
from penstock.cli.connection import (
    ApiKey,
    CaFile,
    ClientCert,
    ClientKey,
    Url,
    connect,
    name_and_version,
    only_model,
    server_key,
    server_url,
    tls_of,
)
from penstock.cli.output import print_json, print_table
from penstock.cli.started import started
from penstock.client import Tls, calls
from penstock.client.http1 import request
from penstock.client.made_up import make_up
from penstock.client.options import parse_url
from penstock.client.tensors import Ask
from penstock.core.errors import Internal, InvalidInput, NotReady
from penstock.ledger.report import percentile

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="The model, or MODEL@VERSION; may be left out where there is one."),
    ] = None,
    connections: Annotated[int, typer.Option(metavar="NUMBER", help="Clients at once.", min=1)] = 16,
    duration: Annotated[float, typer.Option(metavar="SECONDS", help="How long.", min=0.1)] = 5.0,
    rows: Annotated[int, typer.Option(metavar="NUMBER", help="Rows in each request.", min=1)] = 1,
    protocol: Annotated[str, typer.Option(metavar="http|grpc", help="Protocol to measure.")] = "http",
    grpc_address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where gRPC answers.")] = "127.0.0.1:8081",
    given: Annotated[
        str | None, typer.Option("--input", metavar="INPUT", help="Send this, as `predict` reads it.")
    ] = None,
    serve: Annotated[
        str | None, typer.Option(metavar="PATH", help="First start a server for PATH, and stop it.")
    ] = None,
    ledger: Annotated[
        bool,
        typer.Option("--ledger", help="An open loop with a ledger of every request; see `bench --ledger --help`."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    ca_file: CaFile = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
) -> None:
    """Measures a running server with many clients at once.

    Each client sends its next request when it has the answer to the last one. Inputs are made up from the model's
    metadata. The split of the server's time (queue, batch, compute) comes from its Server-Timing header on every 16th
    answer. Client and server share this machine's processors: for a true maximum run it from another machine.
    """
    if protocol not in ("http", "grpc"):
        raise InvalidInput(f"--protocol is {protocol!r}; write http or grpc")
    tls = tls_of(ca_file, client_cert, client_key)
    with contextlib.ExitStack() as stack:
        if serve is not None:
            own = stack.enter_context(started(serve))
            url, grpc_address = own.http, own.grpc
        client = stack.enter_context(connect(url, api_key, tls))
        name, version = name_and_version(model or only_model(client))
        known = client.metadata(name, version).inputs
        values = make_up(known, rows) if given is None else inputs.read(given, known, sys.stdin.buffer)
        datatypes = {spec.name: spec.datatype for spec in known}
        # One call first: a model that refuses what was made up is told here, with the server's own words.
        client.infer(name, values, version=version, datatypes=datatypes)
        ask = Ask(name, values, version, datatypes=datatypes)
        if protocol == "grpc":
            secure = parse_url(server_url(url)).secure  # TLS is on for both ports, or for none
            tally = _run_grpc(ask, grpc_address, api_key, tls if secure else None, connections, duration)
        else:
            tally = _run_http(_target(ask, url, api_key, tls), connections, duration)
    figures = summary(tally, connections, rows)
    if as_json:
        print_json({"model": name, "protocol": protocol, "connections": connections, "rows": rows, **figures})
    else:
        print_table([{"figure": key, "value": _shown(value)} for key, value in figures.items()], right=["value"])
    if not tally.latencies_s:
        raise Internal(f"no request was answered: {tally.errors}")


def summary(tally: load.Tally, connections: int, rows: int) -> dict[str, object]:
    """The figures of a run. Times in milliseconds, percentiles by nearest rank."""
    ordered = sorted(tally.latencies_s)
    figures: dict[str, object] = {
        "requests": len(ordered),
        "errors": sum(tally.errors.values()),
        "seconds": round(tally.seconds, 3),
        "requests/s": round(len(ordered) / tally.seconds, 1) if tally.seconds else 0.0,
        "rows/s": round(len(ordered) * rows / tally.seconds, 1) if tally.seconds else 0.0,
    }
    if ordered:
        for title, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)):
            figures[f"{title} ms"] = round(percentile(ordered, share) * 1e3, 3)
    for name, measured in tally.server_s.items():
        figures[f"server {name} ms (mean)"] = round(sum(measured) / len(measured) * 1e3, 3)
    figures |= {f"error: {why}": count for why, count in tally.errors.items()}
    return figures


def _run_http(target: load.Target, connections: int, duration_s: float) -> load.Tally:
    import uvloop

    try:
        return uvloop.run(load.run(target, connections, duration_s))
    except OSError as error:
        raise NotReady(f"cannot connect to {target.host}:{target.port}: {error}") from error


def _run_grpc(
    ask: Ask, address: str, api_key: str | None, tls: Tls | None, connections: int, duration_s: float
) -> load.Tally:
    import asyncio

    from penstock.cli import load_grpc

    request = load_grpc.prepare(ask)
    return asyncio.run(load_grpc.run(address, request, connections, duration_s, server_key(api_key), tls))


def _target(ask: Ask, url: str | None, api_key: str | None, tls: Tls) -> load.Target:
    address = parse_url(server_url(url))
    key = server_key(api_key)
    wires = []
    for timing in (False, True):
        call = calls.infer(ask, None, gzip=False, timing=timing)
        headers = {**call.headers, "Authorization": f"Bearer {key}"} if key else call.headers
        wires.append(b"".join(bytes(part) for part in request(address, call.method, call.path, headers, call.body)))
    context = tls.context() if address.secure else None
    return load.Target(address.host, address.port, wires[0], wires[1], context)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
