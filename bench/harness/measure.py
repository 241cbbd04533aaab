"""Rounds: every server in turn, A B C A B C …, because a machine's speed drifts over minutes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from peers import Peer

from harness import clients, inprocess, servers
from harness.workload import Point, Workload

IN_PROCESS = "in process"  # the record of ONNX Runtime without a server


@dataclass(frozen=True, slots=True)
class Contender:
    """One variant of one peer, and the interpreter it runs with."""

    peer: Peer
    variant: str
    python: Path


@dataclass(slots=True)
class Record:
    """All that was seen of one contender. `loads` is by point key and has one entry a round."""

    loads: dict[str, list[clients.Load]] = field(default_factory=dict)
    starts_s: dict[str, list[float]] = field(default_factory=dict)  # workload → first right answer after
    weights: dict[str, list[servers.Weight]] = field(default_factory=dict)  # workload → after its load
    forms: dict[str, str] = field(default_factory=dict)  # point key → wire form
    wrong: int = 0
    troubles: dict[str, str] = field(default_factory=dict)  # workload → why it is not measured any more

    def rate(self, key: str) -> float | None:
        """Median requests/s, or None where it was not measured."""
        loads = self.loads.get(key)
        return statistics.median(load.rate for load in loads) if loads else None

    def failures(self) -> int:
        return sum(load.failures for loads in self.loads.values() for load in loads)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often. Seconds are for each point of each round, after a warm-up."""

    points: Sequence[Point]
    rounds: int
    seconds: int
    warm_up_s: int = 1


Say = Callable[[str], None]


def measure(
    plan: Plan, contenders: Sequence[Contender], workloads: Mapping[str, Workload], say: Say, drop: bool
) -> dict[str, Record]:
    """Every contender's record. With `drop`, a variant that lost every point of the first round by a tenth to another
    variant of its peer is not measured again. An interrupt ends it early, with what there is."""
    records = {each.variant: Record() for each in contenders} | {IN_PROCESS: Record()}
    left = list(contenders)
    try:
        for turn in range(plan.rounds):
            for workload in workloads.values():
                points = [point for point in plan.points if point.workload == workload.name]
                measure_in_process(plan, workload, records[IN_PROCESS], say)
                for contender in left:
                    say(f"round {turn + 1}/{plan.rounds}  {workload.name}  {contender.variant}")
                    visit(contender, workload, points, plan, records[contender.variant])
            if turn == 0 and drop:
                left = [each for each in left if not beaten(each, left, records)]
    except KeyboardInterrupt:
        say("interrupted: what follows is what was measured until now")
    return records


def measure_in_process(plan: Plan, workload: Workload, record: Record, say: Say) -> None:
    """What the model does without a server: the limit of every server, measured in every round as they are."""
    keys = {point.key for point in plan.points}
    for setting in inprocess.SETTINGS:
        if setting.workload == workload.name and setting.point in keys:
            say(f"{IN_PROCESS}  {workload.name}  {setting.words}")
            record.loads.setdefault(setting.point, []).append(inprocess.load(setting, workload, plan.seconds))
            record.forms[setting.point] = setting.words


def visit(contender: Contender, workload: Workload, points: Sequence[Point], plan: Plan, record: Record) -> None:
    """One start of one server, all its points, and its end. Trouble is written down, not raised."""
    wanted = {point.route for point in points}
    calls = contender.peer.calls(contender.variant, workload.name)
    calls = {route: call for route, call in calls.items() if route in wanted}
    if not calls or workload.name in record.troubles:
        return

    def start(place: servers.Place) -> servers.Start:
        return contender.peer.start(contender.variant, place)

    try:
        with (
            TemporaryDirectory(prefix="server-bench-") as name,
            servers.running(contender.python, workload, calls, start) as server,
        ):
            record.starts_s.setdefault(workload.name, []).append(server.first_answer_s)
            for route in calls:
                press(server, route, [point for point in points if point.route == route], plan, record, Path(name))
            record.weights.setdefault(workload.name, []).append(server.weigh())
    except (servers.ServerFailed, clients.ClientFailed) as error:
        record.troubles[workload.name] = str(error)


def press(
    server: servers.Running, route: str, points: Sequence[Point], plan: Plan, record: Record, folder: Path
) -> None:
    """Loads one route at each of its points, with a look at the answers before and after."""
    call, workload = server.calls[route], server.place.workload
    port = server.port(call)
    message = call.encode(workload.inputs[:1])

    def look() -> None:
        if not call.constant:
            record.wrong += clients.count_wrong(call, port, workload.inputs, workload.answers)

    look()
    clients.load(call, port, message, points[-1].connections, plan.warm_up_s, folder)
    for point in points:
        seen = clients.load(call, port, message, point.connections, plan.seconds, folder)
        record.loads.setdefault(point.key, []).append(seen)
        record.forms[point.key] = call.name
    look()


def beaten(contender: Contender, others: Sequence[Contender], records: Mapping[str, Record]) -> bool:
    """Whether another variant of the same peer was better by a tenth at every point. Penstock's own variants stay."""
    if contender.peer.name == "penstock":
        return False
    mine = records[contender.variant]
    for other in others:
        if other.peer is contender.peer and other.variant != contender.variant:
            theirs = records[other.variant]
            if mine.loads and all((theirs.rate(key) or 0.0) > 1.1 * (mine.rate(key) or 0.0) for key in mine.loads):
                return True
    return False
