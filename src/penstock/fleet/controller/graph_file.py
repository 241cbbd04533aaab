"""Looks at a graph's file when it is deployed, so that one which cannot work never becomes a revision."""

from __future__ import annotations

from pathlib import Path

from penstock.core.errors import InvalidInput
from penstock.fleet.spec import Run
from penstock.graphs import reading, validate

_SUFFIXES = (".yaml", ".yml")  # a Triton ensemble is a repository, which its replica reads
_MOST_BYTES = 4 << 20
_TOLD = 5


def check_graph(run: Run) -> None:
    """Reads the file and looks for what cannot work: unknown keys, circles, values that are not there. What the steps'
    models take and give is known to the replica only. May block.

    Raises:
        InvalidInput: says what is wrong, and where.
    """
    path = Path(run.graph or run.model)
    if path.suffix not in _SUFFIXES or not path.is_file():
        return
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidInput(f"graph {path}: is larger than {_MOST_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"graph {path}: cannot be read: {error}") from None
    try:
        faults = validate.problems(reading.read(text, path.stem))
    except InvalidInput as error:
        raise InvalidInput(f"graph {path}: {error.message}") from None
    if faults:
        more = f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
        raise InvalidInput(f"graph {path}: {'; '.join(str(fault) for fault in faults[:_TOLD])}{more}")
