"""No line of ours opens a pickle, evaluates text or runs a shell: every file of the package is read as a syntax tree.

A class test: it knows what is forbidden, not where somebody once did it. The few places that are meant are named with
the reason, and a name in the list that is not needed any more is a failure too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import penstock

ROOT = Path(penstock.__file__).parent

# Modules that run what they read, or send it as a pickle (multiprocessing, shelve, and the queues of asyncio's pools).
MODULES = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "dbm", "copyreg", "jsonpickle",
    "multiprocessing", "xmlrpc", "code", "codeop", "pty", "commands", "imp", "telnetlib",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
# What these attributes do when they are called, by the module that the name before them came from.
ATTRIBUTES = {
    "os": {"system", "popen", "spawnl", "spawnle", "spawnlp", "spawnlpe", "spawnv", "spawnve", "spawnvp", "spawnvpe"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "asyncio": {"create_subprocess_shell"},
    "concurrent.futures": {"ProcessPoolExecutor"},
    "numpy": {
        "fromregex",
        "genfromtxt",
        "loadtxt",
    },  # slow parsers, which open files and addresses that a name leads to
    "builtins": CALLS,
    "logging.config": {"listen", "fileConfig"},  # both evaluate text
}
# Readers that need a word against objects, or a safe loader.
PICKLE_BY_DEFAULT = {"torch.load", "pandas.read_pickle", "numpy.core.multiarray._reconstruct", "joblib.load"}
# Named by text: `require("joblib", …)` and `import_module("pickle")` import as well as an import statement does.
BY_NAME = {"require", "import_module", "find_spec"}

# (file, what) -> why it is meant.
ALLOWED = {
    ("runtime/adapters/sklearn.py", "require joblib"): "opens a pickle that the user named with --trust, in a worker",
    ("runtime/adapters/sklearn.py", "joblib.load"): "the same",
}  # fmt: skip


def findings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and description of everything forbidden in one module."""
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, f"import {alias.name}") for alias in node.names if forbidden(alias.name))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            if forbidden(module):
                yield node.lineno, f"import {module}"
            for alias in node.names:
                if alias.name in ATTRIBUTES.get(module, ()) or forbidden(f"{module}.{alias.name}"):
                    yield node.lineno, f"{module}.{alias.name}"
        elif isinstance(node, ast.Name) and node.id in CALLS and node.id not in names:
            yield node.lineno, node.id  # also as a value: `run = eval`
        elif isinstance(node, ast.Attribute):
            whole = dotted(node, names)
            module, _, attribute = whole.rpartition(".")
            if attribute in ATTRIBUTES.get(module, ()) or whole in PICKLE_BY_DEFAULT:
                yield node.lineno, whole
        elif isinstance(node, ast.Call):
            yield from in_call(node, names)


def in_call(node: ast.Call, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    function = dotted(node.func, names)
    last = function.rpartition(".")[2]
    for keyword in node.keywords:
        if keyword.arg == "shell" and not is_false(keyword.value):
            yield node.lineno, "shell=True"
        if keyword.arg == "allow_pickle" and not is_false(keyword.value):
            yield node.lineno, "allow_pickle"
        if keyword.arg == "weights_only" and is_false(keyword.value):
            yield node.lineno, "weights_only=False"
        if keyword.arg is None and (function.startswith("subprocess.") or last == "Popen"):
            yield node.lineno, f"{last}(**…)"  # could hold any of these
    if last == "load" and function.startswith("numpy.") and not any(k.arg == "allow_pickle" for k in node.keywords):
        yield node.lineno, "numpy.load without allow_pickle=False"
    if function.startswith("yaml.") and last in ("load", "load_all", "unsafe_load", "full_load", "unsafe_load_all"):
        yield node.lineno, function
    if last in BY_NAME and node.args and isinstance(node.args[0], ast.Constant) and forbidden(str(node.args[0].value)):
        yield node.lineno, f"{last} {node.args[0].value}"


def forbidden(module: str) -> bool:
    return module.partition(".")[0] in MODULES


def imported(tree: ast.Module) -> dict[str, str]:
    """What each imported name of the module stands for, those imported inside functions too."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_no_file_of_the_package_runs_what_it_reads() -> None:
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 100
    found: dict[tuple[str, str], str] = {}
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        for line, what in findings(ast.parse(file.read_text())):
            found[name, what] = f"{name}:{line}: {what}"
    assert [place for key, place in found.items() if key not in ALLOWED] == []
    assert [key for key in ALLOWED if key not in found] == [], "allowed, and not needed any more"


@pytest.mark.parametrize(
    "code",
    ["import pickle", "import pickle as json", "from pickle import loads", "from _pickle import loads", "import multiprocessing.shared_memory",
     "from multiprocessing import Queue", "def f():\n import marshal", "eval('1')", "run = exec", "__import__('pickle')",
     "import importlib\nimportlib.import_module('pickle')", "from importlib import import_module as i\ni('dill')", "import os\nos.system('x')",
     "import os as o\no.popen('x')", "from os import system", "import subprocess\nsubprocess.run('x', shell=True)",
     "import subprocess as s\ns.Popen('x', shell=shell)", "import subprocess\nsubprocess.run(['x'], **options)",
     "import numpy as np\nnp.load(f)", "import numpy\nnumpy.load(f, allow_pickle=True)", "import numpy as np\nnp.load(f, allow_pickle=p)",
     "import yaml\nyaml.load(f)", "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)", "import torch\ntorch.load(f)",
     "import concurrent.futures\nconcurrent.futures.ProcessPoolExecutor()", "from concurrent.futures import ProcessPoolExecutor",
     "import asyncio\nasyncio.create_subprocess_shell('x')", "import builtins\nbuiltins.eval('1')", "import joblib"],
)  # fmt: skip
def test_each_forbidden_thing_is_found_however_it_is_written(code: str) -> None:
    assert list(findings(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    ["import numpy as np\nnp.load(f, allow_pickle=False)", "import re\nre.compile('x')", "x.compile()", "import subprocess\nsubprocess.Popen(['x'])",
     "def exec_model(): ...", "from concurrent.futures import ThreadPoolExecutor", "import json\njson.load(f)", "model.eval()"],
)  # fmt: skip
def test_what_only_looks_alike_is_let_through(code: str) -> None:
    assert not list(findings(ast.parse(code)))
