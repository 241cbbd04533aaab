"""The page about traffic knows every policy, with the options that it has."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from penstock.fleet import policy_options, traffic

PAGE = Path(__file__).parents[2] / "docs" / "traffic.md"
NAMES = sorted(module.name for module in pkgutil.iter_modules(traffic.__path__))


@pytest.mark.parametrize("name", NAMES)
def test_the_pages_table_is_the_options_class(name: str) -> None:
    plug = importlib.import_module(f"penstock.fleet.traffic.{name}").plug
    options = plug.options({"dimension": 1} if name == "linucb" else {})
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    if dataclasses.fields(options):
        assert policy_options.table(type(options)) in sections[name]
    else:
        assert "There are no options" in sections[name]
    assert f"[{name}](#{name})" in PAGE.read_text()
