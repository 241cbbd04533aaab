"""The flags that switch on tests which are too slow, or need too much, for every run: one flag per marker."""

from __future__ import annotations

import pytest

OPT_IN = ("soak",)


def pytest_addoption(parser: pytest.Parser) -> None:
    for marker in OPT_IN:
        parser.addoption(f"--{marker}", action="store_true", help=f"also run the tests marked {marker}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker in OPT_IN:
        if config.getoption(f"--{marker}"):
            continue
        for item in items:
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=f"needs --{marker}"))
