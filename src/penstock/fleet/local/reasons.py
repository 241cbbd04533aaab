"""Why a replica failed, for people: how its process ended, and the last that it said."""

from __future__ import annotations

import json
from collections.abc import Sequence

_LINES = 6
_LINE_CHARACTERS = 400
_QUIET = frozenset({"debug", "info"})


def reason(how: str, kills: int, memory_bytes: int | None, lines: Sequence[str]) -> str:
    """One text. `how` says how it ended, `kills` how many of its processes the kernel killed for memory."""
    if kills and memory_bytes is not None:
        limit = f"{memory_bytes / (1 << 20):g} MiB"
        if "SIGKILL" in how:
            how = f"the kernel killed it: it wanted more memory than its limit of {limit}"
        else:
            how = f"{how}, after the kernel killed {kills} of its processes for memory; its limit is {limit}"
    said = [text for line in lines if (text := _readable(line))]
    return "\n".join([how, *said[-_LINES:]])


def _readable(line: str) -> str:
    """A line of the log; of JSON ones the event and what went wrong, and nothing of those that report good things."""
    line = line.strip()
    try:
        fields = json.loads(line)
    except ValueError:
        return line[:_LINE_CHARACTERS]
    if not isinstance(fields, dict) or "event" not in fields:
        return line[:_LINE_CHARACTERS]
    if fields.get("level") in _QUIET or fields["event"] in ("ready", "serving"):
        return ""
    told = fields.get("error") or fields.get("reason") or fields.get("text") or fields.get("exception") or ""
    return f"{fields['event']}: {str(told)[-_LINE_CHARACTERS:]}" if told else str(fields["event"])
