"""All requests to the newest revision that is ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.fleet import policy_options
from penstock.fleet.evidence.shares import eligible, weights
from penstock.fleet.traffic import Decision, Observation


@dataclass(frozen=True, slots=True)
class Options:
    """There is nothing to choose."""


class Latest:
    name = "latest"
    logged = False

    def options(self, given: Mapping[str, object]) -> Options:
        return policy_options.read(Options, given, "traffic policy latest")

    def decide(self, options: Options, observed: Observation) -> Decision:
        revisions = [arm.revision for arm in observed.arms]
        ready = eligible(((arm.revision, arm.ready) for arm in observed.arms), observed.stable)
        newest = max(ready)
        waiting = [revision for revision in revisions if revision > newest]
        explanation = f"all to revision {newest}" + (f"; revision {max(waiting)} is not ready" if waiting else "")
        return Decision(weights(revisions, {newest: 1.0}), explanation=explanation)


plug = Latest()
