"""The call that is printed at the start can be made as it stands, or is not printed."""

from __future__ import annotations

import pytest

from penstock.cli.startup import call_of
from penstock.core.door import ModelDescription
from penstock.core.servable import Signature
from penstock.core.tensor import parse_spec
from penstock.runtime.options import ServerOptions


def described(**inputs: str) -> ModelDescription:
    specs = tuple(parse_spec(name, text) for name, text in inputs.items())
    return ModelDescription("m", 1, (1,), {}, Signature(specs, (), "python", True), {}, "process", "m.py:m", "0" * 64)


def test_a_model_that_declares_nothing_has_no_call() -> None:
    assert call_of("http://127.0.0.1:1", described(), ServerOptions()) == ""


def test_large_inputs_are_left_to_predict() -> None:
    assert call_of("http://h:1", described(x="f4[n, 3, 224, 224]"), ServerOptions()).startswith("penstock predict m")


@pytest.mark.parametrize(
    ("url", "called"), [("http://0.0.0.0:1", "http://127.0.0.1:1/"), ("http://[::]:1", "http://[::1]:1/")]
)
def test_a_server_on_every_address_is_called_on_one(url: str, called: str) -> None:
    assert called in call_of(url, described(x="f4[n]"), ServerOptions())
