"""Makes docs/promises.md from what is promised (docs/promises.toml) and what was measured (docs/promises.json).

    python tools/promises.py > docs/promises.md

Figures come from the tests themselves: `pytest tests/chaos --chaos --figures docs/promises.json`.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
HEAD = """\
# Promises

What Penstock promises when things go wrong, the figure that was measured, and the test that holds it to that.
Every test injects the real fault: signals, native crashes, limits of the kernel, resets, full disks. The default run
has a short form of each; figures marked *short* were measured there, all others in the long form, alone on a machine
with two cores:

```console
$ .venv/bin/pytest tests/chaos --chaos --figures docs/promises.json    # hours; one file at a time will do
$ make docs
```

Load comes from [the ledger](ledger.md), which shares the two cores with the server.
"""
FAULTS_HEAD = """\
## Faults

Which faults are injected, and by which test. Where a fault cannot be tried on one machine without a GPU, the reason
stands instead.

| Fault | Tests |
|---|---|"""
# A page that a person reads; more digits than these say more than was measured.
_DIGITS = 3


def figure(item: Mapping[str, object]) -> str:
    """One measured figure in words."""
    value = item["value"]
    shown = f"{value:,}" if isinstance(value, int) else f"{float(str(value)):.{_DIGITS}g}"
    goal = f" (goal {item['goal']})" if item["goal"] else ""
    short = " *short*" if item["form"] == "short" else ""
    return f"{item['name']}: **{shown} {item['unit']}**{goal}{short}".replace("|", "\\|")


def links(tests: Sequence[str]) -> str:
    """Links to test files."""
    return ", ".join(f"[{Path(test).stem.removeprefix('test_')}](../{test})" for test in tests)


def page(promises: Mapping[str, list[dict[str, object]]], figures: Sequence[Mapping[str, object]]) -> str:
    """The whole page."""
    measured: dict[str, list[str]] = {}
    for item in figures:
        measured.setdefault(str(item["promise"]), []).append(figure(item))
    lines = [HEAD]
    for section in promises["section"]:
        lines += [f"## {section['title']}", "", "| | Promise | Measured | Tests |", "|---|---|---|---|"]
        for one in section["promise"]:  # type: ignore[attr-defined]  # TOML's tables
            told = "<br>".join(measured.pop(one["id"], [])) or one.get("without", "")
            lines.append(f"| {one['id']} | {one['text']} | {told} | {links(one['tests'])} |")
        lines.append("")
    lines.append(FAULTS_HEAD)
    for fault in promises.get("fault", []):
        told = "; ".join(part for part in (links(fault["tests"]), str(fault.get("note", ""))) if part)  # type: ignore[arg-type]
        said = measured.pop(str(fault["id"]), [])
        lines.append(f"| {fault['id']} {fault['text']} | {'<br>'.join([told, *said])} |")
    if measured:
        raise SystemExit(f"figures of no promise: {', '.join(sorted(measured))}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the page to standard output."""
    promises = tomllib.loads((DOCS / "promises.toml").read_text())
    file = DOCS / "promises.json"
    sys.stdout.write(page(promises, json.loads(file.read_text()) if file.exists() else []))


if __name__ == "__main__":
    main()
