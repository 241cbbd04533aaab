"""How deployments look on a terminal and in tables. Pure: statuses in, rows and renderables out."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.client.fleet_status import ArmStatus, Status

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLOURS = {
    "ready": "green", "deploying": "yellow", "degraded": "yellow", "failed": "red", "scaled-to-zero": "blue",
    "deleting": "dim", "starting": "yellow", "retired": "dim", "draining": "dim", "pending": "yellow",
}  # fmt: skip
_BAR = 20


def overview(statuses: Sequence[Status]) -> list[dict[str, object]]:
    """One row per deployment."""
    return [
        {
            "deployment": one.name,
            "phase": one.phase,
            "policy": one.policy,
            "revisions": " ".join(f"{arm.revision}:{arm.weight * 100:.0f}%" for arm in one.arms),
            "replicas": sum(replica.state == "ready" for replica in one.replicas),
            "req/s": f"{one.requests_per_s:.1f}",
            "waiting": one.waiting,
            "message": "; ".join(filter(None, (one.message, *one.alarms))),
        }
        for one in statuses
    ]


def arms(status: Status) -> list[dict[str, object]]:
    """One row per arm of a deployment."""
    return [
        {
            "revision": arm.revision,
            "share": f"{arm.weight * 100:.1f}%",
            "phase": _phase(arm),
            "replicas": f"{arm.replicas_ready}/{arm.replicas_wished}",
            "requests": arm.requests,
            "errors": percent(arm.error_rate),
            "p50 ms": number(arm.p50_ms),
            "p99 ms": number(arm.p99_ms),
            "rewards": arm.rewards,
            "mean reward": number(arm.mean_reward),
            "": arm.reason,
        }
        for arm in status.arms
    ]


def replicas(status: Status) -> list[dict[str, object]]:
    """One row per replica of a deployment."""
    return [
        {
            "replica": one.id, "revision": one.revision, "state": one.state, "http": one.http,
            "pid": one.pid or "", "in flight": number(one.concurrency), "": one.reason,
        }
        for one in status.replicas
    ]  # fmt: skip


def revisions(status: Status) -> list[dict[str, object]]:
    """One row per revision of a deployment, newest first."""
    return [
        {
            "revision": one.number,
            "phase": one.phase,
            "created": _time(one.created_at),
            "model": one.model,
            "": one.reason,
        }
        for one in sorted(status.revisions, key=lambda each: -each.number)
    ]


def page(statuses: Sequence[Status]) -> RenderableType:
    """Everything about the deployments, for a terminal."""
    from rich.console import Group
    from rich.text import Text

    if not statuses:
        return Text("no deployments; make one with `penstock deploy NAME MODEL`", style="dim")
    return Group(*(part for one in statuses for part in _parts(one)))


def _parts(status: Status) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    title = Text.assemble(
        (status.name, "bold"), "  ", (status.phase, _COLOURS.get(status.phase, "")),
        f"  {status.policy}  {status.requests_per_s:.1f} req/s",
        f"  {status.waiting} waiting" if status.waiting else "",
        f"  {status.message}" if status.message else "",
    )  # fmt: skip
    parts: list[RenderableType] = [title]
    if status.arms:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 1))
        for column in ("", "revision", "share", "replicas", "requests", "errors", "p50 ms", "p99 ms", "reward", "", ""):
            table.add_column(column, justify="right" if column not in ("", "share") else "left")
        for arm in status.arms:
            filled = round(arm.weight * _BAR)
            reward = f"{arm.mean_reward:.3f} of {arm.rewards}" if arm.mean_reward is not None else ""
            table.add_row(
                "stable" if arm.revision == status.stable else "", str(arm.revision),
                f"{'█' * filled}{'░' * (_BAR - filled)} {arm.weight * 100:5.1f} %",
                f"{arm.replicas_ready}/{arm.replicas_wished}", f"{arm.requests:,}", percent(arm.error_rate),
                number(arm.p50_ms), number(arm.p99_ms), reward,
                Text(_phase(arm), style=_COLOURS.get(arm.phase, "")), Text(arm.reason, style="dim"),
            )  # fmt: skip
        parts.append(table)
    if status.explanation:
        parts.append(Text(f"  {status.explanation}", style="dim"))
    parts += [Text(f"  ! {alarm}", style="bold red") for alarm in status.alarms]
    parts += [Text(f"  {_time(event.at)}  {event.message}", style="dim") for event in status.events[-5:]]
    parts.append(Text(""))
    return parts


def _phase(arm: ArmStatus) -> str:
    return f"{arm.phase}, shadow" if arm.shadow else arm.phase


def percent(share: float | None) -> str:
    """A share of 0 to 1 as people read it; nothing for None."""
    return "" if share is None else f"{share * 100:.2f} %"


def number(value: float | None) -> str:
    """Three digits, or all before the point; nothing for None."""
    return "" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _time(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S") if at else ""
