"""Measures Penstock and other model servers on the same work, with the same client, on this machine.

    python bench/run.py                                  # everything that is installed, about 25 minutes
    python bench/run.py --quick                          # one round, about 3 minutes
    python bench/run.py --only penstock,mosec --table W1
    python bench/run.py --install mosec,litserve         # makes bench/.venvs/NAME for each; `all` takes every peer

See README.md beside this file.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from harness import clients, environments, report
from harness.measure import Contender, Plan, measure
from harness.workload import POINTS, TABLES, load
from peers import Peer, all_peers

RESULTS = environments.BENCH / "results"


def main(
    install: Annotated[str, typer.Option(help="Peers to install, separated by commas, or `all`; then stop.")] = "",
    only: Annotated[str, typer.Option(help="Peers or variants to measure, separated by commas.")] = "",
    without: Annotated[str, typer.Option(help="Peers or variants to leave out.")] = "",
    table: Annotated[str, typer.Option(help="Tables to measure: W1,W2,W3.")] = "",
    quick: Annotated[bool, typer.Option(help="One round, the first variant of each peer.")] = False,
    rounds: Annotated[int | None, typer.Option(help="Rounds over all servers [default: 3, quick: 1].")] = None,
    seconds: Annotated[int | None, typer.Option(help="Length of one measurement [default: 2, quick: 1].")] = None,
    keep_all: Annotated[bool, typer.Option(help="Measure in every round also variants that lost everywhere.")] = False,
    reference: Annotated[str, typer.Option(help="The variant that others are compared with.")] = "penstock",
) -> None:
    """Measures every installed server in turn and prints the comparison."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # leave no server behind
    console = Console(width=None if sys.stdout.isatty() else 170)
    peers = all_peers()
    if install:
        install_peers(split(install), peers, console)
        return
    environments.ensure_models(console)
    tables = set(split(table) or TABLES)
    absent = clients.missing()
    for program, how in absent.items():
        console.print(f"[yellow]no {program}[/yellow]: {how}; its tables are left out")
    tables -= {name for name in tables if ("h2load" if name == "W3" else "wrk") in absent}
    points = [point for point in POINTS if point.table in tables]
    plan = Plan(points, rounds or (1 if quick else 3), seconds or (1 if quick else 2))
    contenders, versions = choose(peers, split(only), split(without), quick, console)
    workloads = {name: load(environments.MODELS, name) for name in dict.fromkeys(point.workload for point in points)}

    began = time.monotonic()
    with console.status("") as status:

        def say(text: str) -> None:
            status.update(f"{text}  ({time.monotonic() - began:.0f} s)")
            if not console.is_terminal:
                console.print(f"{time.monotonic() - began:5.0f} s  {text}", highlight=False)

        records = measure(plan, contenders, workloads, say, drop=not keep_all)

    machine = describe_machine()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    report.show(console, plan, contenders, records, versions, reference)
    result = report.as_json(plan, contenders, records, versions, machine)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(result, indent=1))
    console.print(f"{time.monotonic() - began:.0f} s in all; {path}", highlight=False)


def install_peers(names: list[str], peers: dict[str, Peer], console: Console) -> None:
    """Installs each named peer; one that fails does not stop the others. Exits 1 when any failed."""
    installable = {name: peer for name, peer in peers.items() if peer.packages}
    chosen = list(installable) if names == ["all"] else names
    unknown = set(chosen) - installable.keys()
    if unknown:
        raise typer.BadParameter(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(installable)}")
    failed = []
    for name in chosen:
        try:
            environments.install(name, installable[name].packages, console)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            console.print(f"[red]{name}[/red]: pip ended with {error.returncode}")
    if failed:
        raise typer.Exit(1)


def choose(
    peers: dict[str, Peer], only: list[str], without: list[str], quick: bool, console: Console
) -> tuple[list[Contender], dict[str, str]]:
    """What takes part, in order: limits, Penstock, the others; and the version of each peer."""
    contenders, versions = [], {}
    for name, peer in sorted(peers.items(), key=lambda item: (item[0] != "limits", item[0] != "penstock", item[0])):
        if only and name not in only and not set(only) & peer.variants.keys():
            continue
        python = environments.python_of(name) if peer.packages else environments.this_python()
        versions[name] = environments.version(python, peer.distribution)
        if not versions[name]:
            console.print(f"[yellow]{name} is not installed[/yellow]: python bench/run.py --install {name}")
            continue
        variants = list(peer.variants)
        named = [each for each in variants if each in only]
        if named and (name not in only or len(named) > 1):  # a peer's own name alone means all its variants
            variants = named
        elif quick:
            variants = variants[:1]
        contenders += [
            Contender(peer, each, python) for each in variants if each not in without and name not in without
        ]
    return contenders, versions


def describe_machine() -> dict[str, object]:
    """What a reader must know to compare two results."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version()}


def split(text: str) -> list[str]:
    """The words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


if __name__ == "__main__":
    typer.run(main)
