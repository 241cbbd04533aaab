"""The one table of everything that reads bytes of others. Hypothesis and atheris both walk through it."""

from __future__ import annotations

import client_targets
import inner_targets
import ledger_targets
import server_targets
from target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for room in (server_targets, inner_targets, client_targets, ledger_targets)
    for target in room.targets()
}
