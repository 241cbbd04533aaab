"""The parts of a router that learn from its traffic, put together: decisions, rewards, counts and shadows."""

from __future__ import annotations

import os
from dataclasses import dataclass

from penstock import plugins
from penstock.core.errors import InvalidInput
from penstock.fleet import traffic
from penstock.fleet.router.decision import Decider
from penstock.fleet.router.feedback import Feedback
from penstock.fleet.router.mirror import Mirror
from penstock.fleet.router.recorder import Recorder
from penstock.fleet.routes import Table
from penstock.fleet.store.decisions import Decisions
from penstock.fleet.traffic import ContextualPolicy


@dataclass(frozen=True, slots=True)
class Learning:
    """They are the fields of `hooks.Hooks` by the same names. `start` once the loop runs, `close` when the last answer
    is out (it blocks for some seconds where the database does)."""

    decisions: Decider
    recorder: Recorder
    feedback: Feedback
    mirror: Mirror

    def table(self, table: Table) -> None:
        self.decisions.table(table)
        self.feedback.table(table)

    def start(self) -> None:
        self.mirror.start()
        self.recorder.start()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Writes what is left; whether all of it was written."""
        self.mirror.close()
        return self.recorder.close(timeout_s)


def learning(database: str, router: str) -> Learning:
    """The parts of the router with this id. The database need not be there yet: it is opened when there is something to
    write, and as often as it takes."""
    mirror = Mirror()
    # A router's id may come again after its restart; the number of its last batch does not.
    writer = f"{router[:40]}-{os.urandom(6).hex()}"
    recorder = Recorder(lambda: Decisions(database), writer, comparisons=mirror.take)
    return Learning(Decider(recorder, _contextual), recorder, Feedback(recorder), mirror)


def _contextual(name: str) -> ContextualPolicy:
    found = plugins.load(traffic.__name__, name)
    if not isinstance(found, ContextualPolicy):
        raise InvalidInput(f"the traffic policy {name!r} does not choose by context")
    return found
