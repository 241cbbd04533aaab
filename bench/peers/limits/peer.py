"""Servers that do nothing, to show what the clients and the plain wire can do at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from harness.servers import Place, Start
from harness.wire import Call, json_call, raw_call, v2_grpc_call

HERE = Path(__file__).parent


class Limits:
    name = "limits"
    packages = ()  # runs in the harness's own environment
    distribution = "uvloop"
    variants: ClassVar[dict[str, str]] = {
        "no-op": "constant answer, nothing parsed: uvloop socket and grpcio.aio, one process",
    }

    def calls(self, variant: str, workload: str) -> Mapping[str, Call]:
        calls = {"json": json_call("/"), "grpc": v2_grpc_call("digits")}
        if workload == "conv":
            calls = {"binary": raw_call("/")}
        return {route: replace(call, constant=True) for route, call in calls.items()}

    def start(self, variant: str, place: Place) -> Start:
        return Start([place.python, HERE / "serve.py", place.http_port, place.grpc_port, place.workload.name])


peer = Limits()
