"""Grammar compilation, once, above all engines: JSON Schemas, patterns, choices, users' grammars and tool calls become
one form, which llama.cpp, OpenVINO and vLLM take as text and `Masker` turns into masks of tokens.

`Compiler.compile_format` is the one entrance; a `Compiled` is what comes out.
"""

from __future__ import annotations

from penstock.language.grammars.compiling import Compiled, Compiler
from penstock.language.grammars.nodes import Limits
from penstock.language.grammars.tools import HERMES, LLAMA, MISTRAL, PLAIN, PLAIN_LIST, ToolFormat

__all__ = ["HERMES", "LLAMA", "MISTRAL", "PLAIN", "PLAIN_LIST", "Compiled", "Compiler", "Limits", "ToolFormat"]
