"""What a router counts, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from penstock.fleet.router.recorder import Recorder

if TYPE_CHECKING:
    from penstock.fleet.router.front import HttpFront
    from penstock.fleet.router.lanes import Lane

_STATUS = ("lost", "1xx", "2xx", "3xx", "4xx", "5xx")


def render(front: HttpFront) -> str:
    """All series. Labels: `deployment` and `revision`, as docs/metrics.md says."""
    lines: list[str] = []
    lanes = [
        (name, lane) for name, service in sorted(front.balancer.services.items()) for lane in service.lanes
    ]  # fmt: skip
    for name, kind, rows in (
        ("penstock_router_requests_total", "counter", _requests(lanes)),
        ("penstock_router_request_seconds_sum", "counter", _of(lanes, lambda lane: lane.tally.latency_sum_s)),
        ("penstock_router_retries_total", "counter", _of(lanes, lambda lane: lane.tally.retries)),
        ("penstock_router_in_flight", "gauge", _of(lanes, _in_flight)),
        ("penstock_router_replicas", "gauge", _of(lanes, lambda lane: len(lane.upstreams))),
        ("penstock_router_replicas_ejected", "gauge", _of(lanes, lambda lane: lane.ejected)),
        (
            "penstock_router_waiting", "gauge",
            [({"deployment": name}, service.waiting) for name, service in sorted(front.balancer.services.items())],
        ),
        (
            "penstock_router_errors_total", "counter",
            [({"deployment": name, "error": kind}, count) for (name, kind), count in sorted(front.errors.items())],
        ),
        (
            "penstock_router_refused_total", "counter",
            [({"reason": reason}, count) for reason, count in sorted(front.refused.items())],
        ),
        ("penstock_router_abandoned_total", "counter", [({}, front.abandoned)]),
        ("penstock_router_connections", "gauge", [({}, front.connections_open)]),
        ("penstock_router_table_version", "gauge", [({}, front.balancer.table.version)]),
        (
            "penstock_router_controller_connected", "gauge",
            [({}, int(front.follower is not None and front.follower.connected))],
        ),
        *_recorded(front),
    ):  # fmt: skip
        lines.append(f"# TYPE {name} {kind}")
        lines += [f"{name}{_labels(labels)} {value}" for labels, value in rows]
    return "\n".join(lines) + "\n"


def _requests(lanes: Iterable[tuple[str, Lane]]) -> Iterator[tuple[dict[str, str], float]]:
    for name, lane in lanes:
        for digit, count in enumerate(lane.tally.by_status):
            if count:
                yield {"deployment": name, "revision": str(lane.revision), "status": _STATUS[digit]}, count


def _recorded(front: HttpFront) -> list[tuple[str, str, list[tuple[dict[str, str], float]]]]:
    """What became of decisions and rewards, where this router has a store for them."""
    if not isinstance(front.hooks.recorder, Recorder):
        return []
    figures = front.hooks.recorder.figures()
    return [
        (
            "penstock_router_decisions_total", "counter",
            [({"outcome": "written"}, figures.decisions), ({"outcome": "dropped"}, figures.dropped_decisions)],
        ),
        (
            "penstock_router_rewards_total", "counter",
            [({"outcome": "written"}, figures.rewards), ({"outcome": "refused"}, figures.refused_rewards)],
        ),
        ("penstock_router_store_failures_total", "counter", [({}, figures.failures)]),
        ("penstock_router_unwritten_seconds", "gauge", [({}, figures.unwritten_s)]),
    ]  # fmt: skip


def _of(lanes: Iterable[tuple[str, Lane]], figure: Callable[[Lane], float]) -> Iterator[tuple[dict[str, str], float]]:
    for name, lane in lanes:
        yield {"deployment": name, "revision": str(lane.revision)}, figure(lane)


def _in_flight(lane: Lane) -> int:
    return sum(upstream.in_flight for upstream in lane.upstreams)


def _labels(labels: dict[str, str]) -> str:
    """Values are names of deployments and of our own, which need no escapes."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}" if labels else ""
