"""The decision log as text: one JSON object per line, as `/decisions` gives and `penstock evaluate-policy` takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
import orjson

from penstock.core.errors import InvalidInput
from penstock.fleet.store.batch import Decision, LoggedDecision


class _Line(msgspec.Struct, frozen=True):
    """What a line holds; more keys than these are passed over, so that logs of others can be read."""

    revision: int
    propensity: float
    at: float = 0.0
    id: str = ""
    deployment: str = ""
    experiment: int = 0
    context: tuple[float, ...] = ()
    reward: float | None = None
    rewarded_at: float | None = None


def write(logged: LoggedDecision) -> bytes:
    """One line, with its end."""
    made = logged.decision
    line: dict[str, object] = {
        "id": made.id, "deployment": made.deployment, "experiment": made.experiment, "revision": made.revision,
        "propensity": made.propensity, "at": made.at, "reward": logged.reward, "rewarded_at": logged.rewarded_at,
    }  # fmt: skip
    if made.context:
        line["context"] = made.context
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def read(lines: Iterable[bytes]) -> Iterator[LoggedDecision]:
    """The decisions of a log; empty lines are passed over.

    Raises:
        InvalidInput: a line is none of a log; the message has its number.
    """
    for number, text in enumerate(lines, 1):
        if text.strip():
            try:
                yield _logged(msgspec.json.decode(text, type=_Line))
            except (msgspec.DecodeError, UnicodeDecodeError, InvalidInput) as error:
                raise InvalidInput(f"line {number} of the log: {error}") from None


def read_documents(documents: Iterable[Mapping[str, object]]) -> Iterator[LoggedDecision]:
    """The decisions of lines that were parsed already. Raises: InvalidInput: as `read`."""
    for number, document in enumerate(documents, 1):
        try:
            yield _logged(msgspec.convert(document, _Line))
        except (msgspec.ValidationError, InvalidInput) as error:
            raise InvalidInput(f"line {number} of the log: {error}") from None


def _logged(line: _Line) -> LoggedDecision:
    if not 0 < line.propensity <= 1:
        raise InvalidInput(f"propensity is {line.propensity:g}; it is above 0 and at most 1")
    made = Decision(line.id, line.deployment, line.experiment, line.revision, line.propensity, line.at, line.context)
    return LoggedDecision(made, line.reward, line.rewarded_at)
