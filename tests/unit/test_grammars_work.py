"""What one grammar may cost its server, however it is written: about a second, and some tens of MiB."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from penstock.core.errors import InvalidInput
from penstock.core.language import Format
from penstock.language.grammars import Compiler

MOST_S = 5.0  # of this thread alone; what was not bounded took many times as long
MOST_BYTES = 64 * 1024 * 1024


def loose(count: int, start: int = 0x3000) -> str:
    """So many characters, none of which is beside another."""
    return "".join(chr(start + 2 * at) for at in range(count))


def nested(count: int, then: str) -> str:
    """So many sets of characters, each within the one before."""
    return " | ".join(f"[{chr(0x4E00 + at)}-{chr(0x9E00 - at)}] {then}" for at in range(count))


def text(pattern: str, **more: object) -> dict[str, object]:
    return {"type": "string", "pattern": pattern, **more}


NARROW = " | ".join(f'[a{chr(0x4E00 + at)}] "{at}"' for at in range(3000))
PARTS = " | ".join(f'(w? " "? w?){{1,30}} "{at}" root' for at in range(800))
HOSTILE = {
    "sets within sets": Format("ebnf", text="root ::= " + nested(2000, '"0"') + "\n"),
    "narrow sets": Format("ebnf", text=f"root ::= ({NARROW})*\n"),
    "a set of many parts, with a length": Format("json_schema", schema=text(f"^[{loose(5000)}]*$", maxLength=30)),
    "a set of many parts, with a great length": Format("json_schema", schema=text(f"^[{loose(5000)}]*$", maxLength=900)),
    "sets within sets, with a length": Format(
        "json_schema", schema=text(f"^({nested(700, '0').replace(' ', '')})*$", maxLength=50)
    ),
    "many beginnings at once": Format("regex", text=f"(([{loose(40)}]+)? ?([{loose(40)}]+)?){{1,300}}"),
    "many parts with many beginnings": Format("ebnf", text=f'root ::= {PARTS} | "x"\nw ::= [a-z]+\n'),
    "many properties": Format(
        "json_schema",
        schema={"type": "object", "properties": {
            f"p{at}": text(f"^[{loose(600, 0x3000 + at)}]*$", maxLength=400 + at) for at in range(60)}},
    ),
    "many keys": Format(
        "json_schema",
        schema={"type": "object", "patternProperties": {
            f"^[{loose(300, 0x3000 + at)}]{{1,{20 + at}}}$": {"type": "string"} for at in range(60)}},
    ),
    "repetitions of nothing": Format(
        "ebnf", text='root ::= (w? " "? w? (e{1000}){1000}){1,300}\nw ::= [a-z]+\ne ::= f*\nf ::= ""\n'
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_grammar_costs_little_or_is_refused(name: str) -> None:
    began = time.thread_time()
    try:
        Compiler().compile_format(HOSTILE[name])
    except InvalidInput as error:
        assert error.message.startswith(("structured_outputs.", "response_format."))
    assert time.thread_time() - began < MOST_S


def test_memory_is_bounded_before_it_is_taken() -> None:
    tracemalloc.start()
    try:
        Compiler().compile_format(HOSTILE["sets within sets"])
    except InvalidInput:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MOST_BYTES
