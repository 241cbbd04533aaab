"""As many replicas as carry the arriving requests per second, with Knative's arithmetic (see `fleet.knative`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.fleet import knative
from penstock.fleet.policy_options import option, read
from penstock.fleet.scaling import Load, Size


@dataclass(frozen=True, slots=True)
class Options(knative.Options):
    target: float = option(200.0, "Requests per second that one replica carries at most.", minimum=0.01)


class RequestsPerSecond:
    """`target` is the rate of one replica; 200 unless given, as Knative has it."""

    name = "rps"

    def options(self, given: Mapping[str, object]) -> Options:
        return read(Options, given, f"scaling {self.name}")

    def size(self, options: Options, load: Load) -> Size:
        recent = knative.recent(options, load.samples)
        samples = [(sample.at, sample.requests_per_s) for sample in recent]
        decision = knative.decide(
            options, samples, now=load.now, ready=load.ready, wished=load.wished, memory=load.memory, what="requests/s",
            arrivals=samples,
        )  # fmt: skip
        replicas = decision.replicas
        if replicas == 0 and load.samples and load.samples[-1].concurrency > 0:
            return Size(1, f"requests still run; {decision.reason}", decision.memory)  # long ones arrive rarely
        return Size(replicas, decision.reason, decision.memory)


plug = RequestsPerSecond()
