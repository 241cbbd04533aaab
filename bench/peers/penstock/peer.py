"""Penstock itself, from the environment that runs the harness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from harness.servers import Place, Start
from harness.wire import Call, v2_binary_call, v2_grpc_call, v2_json_call

FLAGS = {
    "penstock": (),
    "penstock-process": ("--executor", "process", "--workers", "2"),
    "penstock-fronts": ("--fronts", "2"),
    "penstock-nobatch": ("--no-batch",),
}


class Penstock:
    name = "penstock"
    packages = ()  # runs in the harness's own environment
    distribution = "penstock"
    variants: ClassVar[dict[str, str]] = {name: " ".join(flags) or "defaults" for name, flags in FLAGS.items()}

    def calls(self, variant: str, workload: str) -> Mapping[str, Call]:
        if workload == "conv":
            return {"binary": v2_binary_call(workload)}
        return {"json": v2_json_call(workload), "grpc": v2_grpc_call(workload)}

    def start(self, variant: str, place: Place) -> Start:
        command = [place.bin / "penstock", "serve", place.workload.model]
        command += ["--http-port", place.http_port, "--grpc-port", place.grpc_port, *FLAGS[variant]]
        return Start(command)


peer = Penstock()
