"""Carries one scenario out on one server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from penstock import ledger
from penstock.core.errors import PenstockError
from scenarios.bad_rows import BadRows
from scenarios.contestant import Contestant, ledger_inputs
from scenarios.finding import Finding, false_ready_s, good_shares, take_report
from scenarios.plans import Scenario
from scenarios.watch import HealthWatch, held

DEADLINE_S, PATIENCE_S = 1.0, 5.0
# Longer than every server's own bound for a stop.
_EXIT_S = 35.0
_SETTLE_S = 2.0
_CONNECTIONS = 4000


def plan_of(scenario: Scenario, capacity: float, seconds: float, work_s: float, grpc_share: float) -> ledger.Plan:
    """The scenario's plan for a server of that capacity. Without its faults: those need a running server."""
    return ledger.Plan(
        phases=tuple(ledger.Phase(length * seconds, load * capacity) for length, load in scenario.phases),
        deadline_s=scenario.deadline * work_s or DEADLINE_S,
        patience_s=PATIENCE_S,
        leave_share=scenario.leave_share,
        grpc_share=grpc_share,
        allowed=scenario.allowed,
        connections=_CONNECTIONS,
    )


def carry_out(contestant: Contestant, scenario: Scenario, seconds: float, work_s: float, grpc_share: float) -> Finding:
    """What was found. The server runs, and answers; afterwards it may be dead. Raises: what `ledger.run` raises."""
    finding = Finding(contestant.name, scenario.name, capacity=contestant.capacity)
    plan = plan_of(scenario, contestant.capacity, seconds, work_s, grpc_share)
    running = contestant.running
    contestant.remember()
    health = HealthWatch(running.place.http_port)
    breaker = _Breaker(contestant, finding)
    broken_at = plan.phases[0].seconds
    bad = BadRows(running.place.http_port, scenario.bad_share * contestant.capacity or 1.0, plan.seconds)
    faults = [ledger.Fault(0.0, "begin", call=health.start)]
    if scenario.bad_share:
        faults.append(ledger.Fault(0.0, "bad rows begin", call=bad.start))
    if scenario.fault:
        faults.append(ledger.Fault(broken_at, scenario.fault, call=breaker.action(scenario.fault)))
    plan = replace(plan, faults=tuple(faults), watch_pid=running.process.pid)
    try:
        report = asyncio.run(ledger.run(contestant.target, plan, ledger_inputs()))
    finally:
        health.stop()
    take_report(finding, report, scenario)
    finding.bad_rows = dict(bad.wait())
    shares = good_shares(report)
    if scenario.back is not None and scenario.fault:  # too much load says nothing about readiness
        finding.false_ready_s = {
            name: false_ready_s(shares, health.probes[name], broken_at) for name in ("ready", "model")
        }
    alive = [one.took_s for one in health.probes["live"] if one.status == 200]
    finding.live_max_s = max(alive, default=None)
    if scenario.ends_server:
        _look_at_remains(contestant, scenario, finding, breaker, health)
    elif running.process.poll() is not None:
        finding.trouble = f"its main process ended with {running.process.returncode}"
    return finding


def carried_out(
    contestant: Contestant, scenario: Scenario, seconds: float, work_s: float, grpc_share: float
) -> Finding:
    """`carry_out`, where a server that does not answer before the scenario is a finding as well."""
    try:
        return carry_out(contestant, scenario, seconds, work_s, grpc_share)
    except PenstockError as error:
        return Finding(contestant.name, scenario.name, trouble=f"not carried out: {str(error)[:200]}")


class _Breaker:
    """Does to a server what scenarios say."""

    def __init__(self, contestant: Contestant, finding: Finding) -> None:
        self._contestant, self._finding = contestant, finding
        self.done_at = 0.0
        self.ended_after_s: float | None = None
        self._waiter: threading.Thread | None = None

    def action(self, fault: str) -> Callable[[], None]:
        actions = {
            "kill worker": lambda: self._signal_workers(signal.SIGKILL, 1),
            "stop worker": lambda: self._signal_workers(signal.SIGSTOP, 1),
            "kill all workers": lambda: self._signal_workers(signal.SIGKILL, None),
            "terminate": lambda: self._signal_server(signal.SIGTERM),
            "kill server": lambda: self._signal_server(signal.SIGKILL),
        }
        return actions[fault]

    def wait(self) -> None:
        if self._waiter is not None:
            self._waiter.join()

    def _signal_workers(self, number: signal.Signals, count: int | None) -> None:
        self._contestant.remember()
        workers = self._contestant.workers()
        for pid in workers[:count]:
            os.kill(pid, number)
        hit = ", ".join(map(str, workers[:count])) or "none"
        self._finding.events.append(f"{number.name} to {hit} of workers {workers}")

    def _signal_server(self, number: signal.Signals) -> None:
        self._contestant.remember()
        process = self._contestant.running.process
        self.done_at = time.monotonic()
        os.kill(process.pid, number)
        self._waiter = threading.Thread(target=self._wait_for_end, args=(process,), daemon=True)
        self._waiter.start()

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return
        self.ended_after_s = time.monotonic() - self.done_at


def _look_at_remains(
    contestant: Contestant, scenario: Scenario, finding: Finding, breaker: _Breaker, health: HealthWatch
) -> None:
    breaker.wait()
    process, place = contestant.running.process, contestant.running.place
    if scenario.fault == "terminate":
        finding.exit_s, finding.exit_status = breaker.ended_after_s, process.returncode
        if breaker.ended_after_s is None:
            finding.trouble = f"had not ended {_EXIT_S:.0f} s after SIGTERM"
            return
        asked = [one.at + health.begun - breaker.done_at for one in health.probes["ready"] if one.status != 200]
        finding.unready_s = min((at for at in asked if at >= 0), default=None)
    give_up = time.monotonic() + _SETTLE_S
    while contestant.left() and time.monotonic() < give_up:
        time.sleep(0.05)
    finding.orphans = len(contestant.left())
    finding.ports_held = sum(map(held, (place.http_port, place.grpc_port)))
    finding.memory_left = len(contestant.memory_left())
