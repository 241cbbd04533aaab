"""Files that the adapter for Python loads: what it finds, and why it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from python_files import NUMBERS, load, write

from penstock.core.errors import LoadError
from penstock.core.servable import StreamingServable
from penstock.runtime.adapters.python import plug


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def (:\n", "SyntaxError"),
        ("import no_such_module_at_all\n", "No module named 'no_such_module_at_all'.*line 3"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("x = 1\n", "has no model: mark a function"),
        ("class A:\n    def predict(self): ...\nclass B:\n    def predict(self): ...\n", "several models: A, B"),
        ("class A:\n    def predict(self, x): ...\n    def load(self): 1/0\n", "loading A failed: ZeroDivisionError"),
        ("class A:\n    def __init__(self, k): ...\n    def predict(self, x): ...\n", "loading A failed: TypeError"),
        ("class A:\n    def predict(self, x): ...\n    async def load(self): ...\n", "load is async"),
    ],
)
def test_file_that_cannot_be_loaded_says_why_and_where(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=message):
        load(write(tmp_path, source))


def test_name_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    path = write(tmp_path, "class Iris:\n    def predict(self, x): ...\nnumber = 3\n")
    with pytest.raises(LoadError, match="has no 'Rose'; it has Iris"):
        load(f"{path}:Rose")
    with pytest.raises(LoadError, match="is a int; a model is a function or a class"):
        load(f"{path}:number")


def test_modules_beside_the_file_can_be_imported(tmp_path: Path) -> None:
    beside = f"beside_{next(NUMBERS)}"
    (tmp_path / f"{beside}.py").write_text("FACTOR = 7\n")
    path = write(tmp_path, f"import {beside}\ndef predict(x):\n    return x * {beside}.FACTOR\n")
    assert load(path).predict({"x": np.ones(1)}, {})["output"].tolist() == [7.0]  # type: ignore[index]


def test_package_with_init_and_dotted_name_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = f"package_{next(NUMBERS)}"
    write(tmp_path, "from .inner import Model\n__all__ = ['Model']\n", f"{package}/__init__.py")
    write(tmp_path, "class Model:\n    def predict(self, inputs):\n        return {'y': 5}\n", f"{package}/inner.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load(f"{package}.inner:Model").predict({}, {})["y"].item() == 5  # type: ignore[index]
    assert load(f"{tmp_path / package}:Model").predict({}, {})["y"].item() == 5  # type: ignore[index]
    assert load(tmp_path / package, options={"object": "Model"}).predict({}, {})["y"].item() == 5  # type: ignore[index]


def test_two_files_of_one_name_do_not_shadow_each_other(tmp_path: Path) -> None:
    for number in (1, 2):
        write(
            tmp_path,
            f"class Model:\n    def predict(self, inputs):\n        return {{'y': {number}}}\n",
            f"{number}/model.py",
        )
    found = [load(tmp_path / str(number)).predict({}, {})["y"].item() for number in (1, 2)]  # type: ignore[index]
    assert found == [1, 2]


def test_file_called_like_a_standard_module_does_not_replace_it(tmp_path: Path) -> None:
    import random

    path = write(tmp_path, "def predict(x):\n    return x\n", "random.py")
    load(path)
    assert sys.modules["random"] is random


@pytest.mark.parametrize(
    ("path", "recognised"),
    [("pkg.mod:Name", True), ("mod:Name", True), ("mod", False), ("mod:", False), ("a/b:Name", False), ("echo", False)],
)
def test_names_that_are_no_files_are_recognised_by_their_form(path: str, recognised: bool) -> None:
    assert plug.recognises(Path(path)) is recognised


def test_examples_of_the_repository_load() -> None:
    examples = Path(__file__).parents[3] / "examples"
    sentiment = load(f"{examples / 'sentiment.py'}:Sentiment")
    texts = np.array([b"good day, great day", b"awful"], dtype=object)
    assert sentiment.predict({"text": texts}, {})["score"].tolist() == [3.0, -2.0]  # type: ignore[index]
    totals = load(f"{examples / 'ticker.py'}:totals")
    assert isinstance(totals, StreamingServable)
    answers = totals.answer({"x": np.array([1.0, 2.0])}, {})
    assert isinstance(answers, Iterator)
    assert [answer["total"].item() for answer in answers] == [1.0, 3.0]
    waiter = load(f"{examples / 'waiter.py'}:Waiter")
    assert waiter.signature.concurrency == 64
    assert not waiter.signature.batchable
