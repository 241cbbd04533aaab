"""As many replicas as carry the requests in flight and held, with Knative's arithmetic (see `fleet.knative`)."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.fleet import knative
from penstock.fleet.policy_options import read
from penstock.fleet.scaling import Load, Size


class Concurrency:
    """`target` is the number of requests in flight of one replica; 100 unless given, as Knative has it."""

    name = "concurrency"

    def options(self, given: Mapping[str, object]) -> knative.Options:
        return read(knative.Options, given, f"scaling {self.name}")

    def size(self, options: knative.Options, load: Load) -> Size:
        recent = knative.recent(options, load.samples)
        samples = [(sample.at, sample.concurrency) for sample in recent]
        decision = knative.decide(
            options, samples, now=load.now, ready=load.ready, wished=load.wished, memory=load.memory, what="in flight",
            arrivals=[(sample.at, sample.requests_per_s) for sample in recent],
        )  # fmt: skip
        return Size(decision.replicas, decision.reason, decision.memory)


plug = Concurrency()
