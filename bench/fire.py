"""Breaks Penstock and other V2 model servers in the same ways, under load, and counts what their callers saw.

    python bench/fire.py                                   # every scenario, every server that is installed
    python bench/fire.py --only penstock,triton --scenario kill-worker,terminate
    python bench/fire.py --only penstock --seconds 2       # shorter

See docs/under-fire.md.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from harness import environments
from harness.servers import ServerFailed
from peers import all_peers
from run import RESULTS, describe_machine, split
from scenarios import Server, all_servers, tables, without_v2
from scenarios.carry import carried_out, plan_of
from scenarios.contestant import Contestant
from scenarios.finding import Finding
from scenarios.plans import SCENARIOS, Scenario

from penstock.core.errors import PenstockError

_CAPACITY_S = 2.0


def main(
    only: Annotated[str, typer.Option(help="Servers, separated by commas [default: all installed].")] = "",
    scenario: Annotated[str, typer.Option(help="Scenarios, separated by commas [default: all].")] = "",
    seconds: Annotated[float, typer.Option(help="Length that scenarios are multiples of.")] = 6.0,
    work_ms: Annotated[float, typer.Option(help="How long the model takes for a batch.")] = 40.0,
    grpc_share: Annotated[float, typer.Option(help="Share of the load that comes over gRPC.")] = 0.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the findings.")] = None,
) -> None:
    """Carries the scenarios out on each server and prints what was found."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # leave no server behind
    console = Console(width=None if sys.stdout.isatty() else 220, record=True)
    chosen = _scenarios(split(scenario))
    contestants = _contestants(split(only), work_ms / 1e3, console)
    began = time.monotonic()
    findings: list[Finding] = []
    for contestant in contestants.values():
        with contestant:
            for one in chosen:
                finding = _one(contestant, one, seconds, work_ms / 1e3, grpc_share)
                findings.append(finding)
                done = f"{time.monotonic() - began:5.0f} s  {contestant.name}  {one.name}: {tables.verdict(finding)}"
                console.print(done, highlight=False)
    tables.show(console, findings, contestants)
    result = {
        "machine": describe_machine(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "settings": {"seconds": seconds, "work_ms": work_ms, "grpc_share": grpc_share},
        "scenarios": [asdict(one) | {"allowed": sorted(one.allowed)} for one in chosen],
        "servers": {name: _about(one) for name, one in contestants.items()},
        "findings": [finding.as_dict() for finding in findings],
    }
    RESULTS.mkdir(exist_ok=True)
    path = json_file or RESULTS / f"fire-{time.strftime('%Y%m%d-%H%M%S')}.json"
    console.print(f"{time.monotonic() - began:.0f} s in all; {path}", highlight=False)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False))
    console.save_text(str(path.with_suffix(".txt")))


def _one(contestant: Contestant, scenario: Scenario, seconds: float, work_s: float, grpc_share: float) -> Finding:
    """One scenario on a server that answers. What breaks a server gets a new one, and so does what comes after."""
    if scenario.fault:
        contestant.end(at_once=True)
    try:
        contestant.start()
        contestant.measure(plan_of(scenario, 1.0, seconds, work_s, grpc_share), min(_CAPACITY_S, seconds))
    except (ServerFailed, PenstockError) as error:
        contestant.end(at_once=True)
        return Finding(contestant.name, scenario.name, trouble=f"did not start: {str(error)[:500]}")
    finding = carried_out(contestant, scenario, seconds, work_s, grpc_share)
    if scenario.fault:
        contestant.end(at_once=True)
    elif not contestant.answers():
        finding.trouble = finding.trouble or "did not answer again afterwards: restarted"
        contestant.end(at_once=True)
    return finding


def _scenarios(names: list[str]) -> list[Scenario]:
    known = {one.name: one for one in SCENARIOS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"no such scenario: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(SCENARIOS)


def _contestants(names: list[str], work_s: float, console: Console) -> dict[str, Contestant]:
    servers, peers = all_servers(), all_peers()
    unknown = [name for name in names if name not in servers and name not in without_v2()]
    if unknown:
        raise typer.BadParameter(f"no such server: {', '.join(unknown)}; there are {', '.join(servers)}")
    left_out = [name for name in without_v2() if not names or name in names]
    if left_out:
        console.print(f"left out, since they do not speak V2 over HTTP as they come: {', '.join(left_out)}")
    contestants = {}
    for name in names or servers:
        if name in servers:
            found = _contestant(name, servers[name], peers[name].packages, peers[name].distribution, work_s)
            if found is None:
                console.print(f"[yellow]{name} is not installed[/yellow]: python bench/run.py --install {name}")
            else:
                contestants[name] = found
    return contestants


def _contestant(
    name: str, server: Server, packages: tuple[str, ...], distribution: str, work_s: float
) -> Contestant | None:
    python = environments.python_of(name) if packages else environments.this_python()
    version = environments.version(python, distribution)
    return Contestant(name, f"{distribution} {version}", python, server, work_s) if version else None


def _about(contestant: Contestant) -> dict[str, object]:
    server = contestant.server
    return {
        "version": contestant.version,
        "says": contestant.says,
        "settings": server.settings,
        "deadlines": server.deadlines,
        "structure": server.structure,
        "capacity": contestant.capacity,
    }


if __name__ == "__main__":
    typer.run(main)
