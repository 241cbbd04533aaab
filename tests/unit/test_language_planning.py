"""What planning refuses before a grammar is compiled or a prompt tokenised."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

import pytest

from penstock.core.errors import InvalidInput
from penstock.core.language import Ask, EngineInfo, Format, Sampling, Tool
from penstock.language.grammars import Compiler
from penstock.runtime.language.compiles import Compiles
from penstock.runtime.language.planning import Planner
from penstock.runtime.language.texts import Texts, read

INFO = EngineInfo("echo", "1", 259, 50, grammars=frozenset({"ebnf"}), min_tokens=True, ignore_eos=True)


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    path = tmp_path / "m.llmecho"
    path.write_text("")
    return read(path, "", False)


@pytest.mark.parametrize("lacking", [{}, {"grammars": frozenset()}, {"min_tokens": False, "ignore_eos": False}])
@pytest.mark.parametrize("sampling", [Sampling(min_tokens=2), Sampling(ignore_eos=True)])
@pytest.mark.parametrize(
    "held",
    [
        {"format": Format("regex", text="a+")},
        {"tools": (Tool("f", "", {"type": "object"}),), "tool_choice": "required"},
    ],
)
def test_an_end_beside_a_grammar_is_a_wrong_value_whatever_the_engine_lacks(
    texts: Texts, lacking: dict[str, object], sampling: Sampling, held: dict[str, object]
) -> None:
    info = dataclasses.replace(INFO, **lacking)  # type: ignore[arg-type]  # fields by name
    planner = Planner("m", info, texts, Compiles(Compiler()), 1.0)
    ask = dataclasses.replace(Ask(prompt="x", sampling=sampling), **held)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="ends where that ends") as caught:
        asyncio.run(planner.plan(ask, time.monotonic()))
    assert caught.value.problem == "invalid_value", "another model, asked for what this engine lacks, refuses it too"
