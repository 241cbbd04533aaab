"""`penstock bench --ledger MODEL`: load with a ledger of every request, faults while it runs, and a verdict."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import inputs
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
from penstock.client import Client
from penstock.core.errors import InvalidInput, NotReady
from penstock.core.tensor import Array
from penstock.ledger import ALLOWED, Phase, Plan, Report, Target, capacity, faults, page, run, text
from penstock.ledger.book import OUTCOMES
from penstock.ledger.run import Progress

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_LOAD = re.compile(r"([0-9]*\.?[0-9]+)(x?):([0-9]*\.?[0-9]+)")


@app.command(cls=Command)
def bench_ledger(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="The model, or MODEL@VERSION; may be left out where there is one."),
    ] = None,
    load: Annotated[
        str,
        typer.Option(
            metavar="RATE:SECONDS,…",
            help="How many requests a second for how long, one after the other. 3x is three times what the server can "
            "do, which is measured first.",
        ),
    ] = "0.8x:10",
    deadline: Annotated[float, typer.Option(metavar="SECONDS", help="Each request's deadline.")] = 1.0,
    leave: Annotated[float, typer.Option(metavar="SHARE", help="Callers that hang up early: 0 to 1.")] = 0.0,
    grpc_share: Annotated[float, typer.Option(metavar="SHARE", help="Requests that go over gRPC: 0 to 1.")] = 0.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ACTION[:VICTIM]@SECOND",
            help="Break something while the load runs; may be given more than once. Actions: kill, stop, continue, "
            "terminate, interrupt, crash. Victims: server (the process --pid), worker (its busiest descendant), child "
            "(its laziest). Example: kill:worker@5",
        ),
    ] = None,
    pid: Annotated[
        int | None, typer.Option(metavar="PID", help="The server's process: to break, and to watch its memory.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OUTCOME",
            help=f"Do not call this outcome untruthful; may be given more than once. Always allowed: "
            f"{', '.join(sorted(ALLOWED))}. Others: {', '.join(sorted(set(OUTCOMES) - ALLOWED))}.",
        ),
    ] = None,
    given: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="INPUT", help="Send the rows of this, as `predict` reads it; else made up from metadata."
        ),
    ] = None,
    payloads: Annotated[int, typer.Option(metavar="NUMBER", help="Different requests that are made up.", min=2)] = 32,
    rows: Annotated[int, typer.Option(metavar="NUMBER", help="Rows in each that is made up.", min=1)] = 1,
    evenly: Annotated[
        bool, typer.Option("--evenly", help="Arrivals evenly apart, not like independent callers'.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="The same seed sends the same requests.")] = 0,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with plots.")] = None,
    serve: Annotated[
        str | None, typer.Option(metavar="PATH", help="First start a server for PATH, and stop it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    grpc_address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where gRPC answers.")] = "127.0.0.1:8081",
    metrics_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Prometheus metrics, where they are not at /metrics of the server."),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    ca_file: CaFile = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
) -> None:
    """Sends requests when they are due, whether or not the server keeps up, and keeps a ledger of each.

    Works against any server that speaks the V2 protocol. The model must be deterministic: the right answers are learnt
    first, one at a time. Then every request must have exactly one outcome, in time, with its own answer, and the server
    must count what its callers saw. Exit status 1 says that one of these rules was broken.
    """
    tls = tls_of(ca_file, client_cert, client_key)
    unknown = set(allow or ()) - set(OUTCOMES)
    if unknown:
        raise InvalidInput(f"--allow is {', '.join(sorted(unknown))}; write one of {', '.join(OUTCOMES)}")
    parts = loads(load)
    if pid is not None and not Path(f"/proc/{pid}").exists():
        raise InvalidInput(f"--pid is {pid}, and there is no such process")
    if html is not None:
        _check_writable(html)
    with contextlib.ExitStack() as stack:
        if serve is not None:
            own = stack.enter_context(started(serve))
            url, grpc_address, pid = own.http, own.grpc, own.pid
        planned = tuple(faults.parse(one, pid) for one in fault or ())
        client = stack.enter_context(connect(url, api_key, tls))
        name, version = name_and_version(model or only_model(client))
        target = Target(server_url(url), name, version, grpc_address, server_key(api_key), tls, metrics_url)
        values = None if given is None else _each_row(client, name, version, given)

        def plan(*phases: Phase) -> Plan:
            return Plan(
                phases, deadline, leave_share=leave, grpc_share=grpc_share, poisson=not evenly, faults=planned,
                allowed=ALLOWED | set(allow or ()), seed=seed, payloads=payloads, rows=rows, watch_pid=pid,
            )  # fmt: skip

        report = _run(target, plan, parts, values)
    if as_json:
        print_json(text.as_json(report))
    else:
        print_table(text.rows(report))
        sys.stdout.write("\n".join(text.verdict(report)) + "\n")
    if html is not None:
        html.write_text(page.render(report, f"Ledger of {name}"), encoding="utf-8")
    if not report.passed:
        raise typer.Exit(1)


def loads(text: str) -> list[tuple[float, bool, float]]:
    """(rate, whether it is a multiple of what the server can do, seconds) of each part of `--load`.

    Raises: InvalidInput."""
    parts = []
    for part in text.split(","):
        found = _LOAD.fullmatch(part.strip())
        if found is None or float(found[1]) <= 0 or float(found[3]) <= 0:
            raise InvalidInput(f"--load is {text!r}; write RATE:SECONDS,… such as 200:10 or 0.8x:10,3x:30,0.8x:10")
        parts.append((float(found[1]), found[2] == "x", float(found[3])))
    return parts


def _run(
    target: Target,
    plan: Callable[..., Plan],
    parts: Sequence[tuple[float, bool, float]],
    values: Sequence[dict[str, Array]] | None,
) -> Report:
    import uvloop

    rate = 1.0
    if any(relative for _, relative, _ in parts):
        rate = uvloop.run(capacity(target, plan(Phase(1.0, 1.0)), values))
        if not rate:
            raise NotReady(f"{target.model} answered nothing while its capacity was measured")
        _tell(f"capacity {rate:,.0f} right answers a second")
    phases = [Phase(seconds, value * rate if relative else value) for value, relative, seconds in parts]
    with _progress(sum(phase.seconds for phase in phases)) as progress:
        return uvloop.run(run(target, plan(*phases), values, progress))


def _each_row(client: Client, name: str, version: str, given: str) -> list[dict[str, Array]]:
    """One payload for each row of what was given."""
    values = inputs.read(given, client.metadata(name, version).inputs, sys.stdin.buffer)
    lengths = {array.shape[0] for array in values.values() if array.ndim}
    if len(lengths) != 1:
        raise InvalidInput(
            f"--input has inputs of {sorted(lengths)} rows; each row is one request, so all need as many"
        )
    return [{key: array[row : row + 1] for key, array in values.items()} for row in range(lengths.pop())]


def _check_writable(file: Path) -> None:
    """Raises: InvalidInput. Before the run, which may take long."""
    try:
        file.touch()
    except OSError as error:
        raise InvalidInput(f"--html is {file}, which cannot be written: {error.strerror}") from None


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@contextlib.contextmanager
def _progress(seconds: float) -> Iterator[Progress | None]:
    """A bar on a terminal; None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("sending", total=seconds)
        yield lambda at, sent, ended: bar.update(task, completed=at, description=f"{sent:,} sent, {ended:,} ended")
