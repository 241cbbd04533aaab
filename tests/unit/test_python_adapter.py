"""Python models: how they are found, what they are handed, what they may give, and how they fail."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from penstock.core.errors import InvalidInput, LoadError, ServableError, Unsupported
from penstock.core.servable import LoadContext, Servable, StreamingServable
from penstock.core.tensor import parse_spec
from penstock.runtime.adapters.python import plug

NUMBERS = itertools.count()
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and "pytest-of" in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(folder: Path, source: str, name: str = "") -> Path:
    path = folder / (name or f"user_model_{next(NUMBERS)}.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("import numpy as np\nimport penstock\n" + dedent(source))
    return path


def load(path: Path | str, **context: Any) -> Servable:
    return plug.load(Path(path), LoadContext("model", 3, **context))


def test_function_gets_its_inputs_as_keywords(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        @penstock.model(inputs={"x": "f4[n, 3]", "w": "f4[n]"}, outputs={"y": "f4[n]"})
        def weigh(w, x):
            return {"y": x.sum(axis=1) * w}
        """,
    )
    servable = load(f"{path}:weigh")
    assert servable.signature.batchable
    assert (servable.signature.platform, servable.signature.inline_safe) == ("python", False)
    outputs = servable.predict({"x": X, "w": np.array([1, 2], np.float32)}, {})
    assert outputs["y"].tolist() == [3.0, 24.0]


def test_class_is_made_loaded_and_closed_once(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.txt").write_text("10")
    path = write(
        tmp_path,
        """
        class Model:
            def load(self, artifact, context):
                self.factor = float((artifact / "w.txt").read_text())
                self.note = f"{context.name} {context.version} {context.device}"
            def predict(self, inputs):
                return {"y": inputs["x"] * self.factor, "note": self.note}
            def close(self):
                open(__file__ + ".closed", "a").write("x")
        """,
    )
    servable = load(path, options={"artifact": "weights"})
    outputs = servable.predict({"x": X}, {})
    np.testing.assert_array_equal(outputs["y"], X * 10)
    assert outputs["note"].item() == b"model 3 cpu"
    servable.close()
    assert Path(f"{path}.closed").read_text() == "x"


def test_artifact_is_the_models_folder_unless_said(tmp_path: Path) -> None:
    path = write(
        tmp_path / "7",
        """
        class Model:
            def load(self, artifact):
                self.at = str(artifact)
            def predict(self, inputs):
                return {"at": self.at}
        """,
        "model.py",
    )
    assert load(path.parent).predict({}, {})["at"].item() == str(tmp_path / "7").encode()
    with pytest.raises(LoadError, match="artifact 'gone'"):
        load(path.parent, options={"artifact": "gone"})


def test_parameters_go_to_whom_asks_for_them(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        def scaled(x, parameters):
            return x * parameters.get("scale", 1)
        """,
    )
    outputs = load(f"{path}:scaled").predict({"x": X}, {"scale": 3})
    np.testing.assert_array_equal(outputs["output"], X * 3)


def test_str_inputs_come_as_text_and_bytes_inputs_as_bytes(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        @penstock.model(inputs={"a": "str[n]", "b": "bytes[n]"}, outputs={"kinds": "str[n]"})
        def kinds(a, b):
            return [type(x).__name__ + type(y).__name__ for x, y in zip(a, b)]
        """,
    )
    words = np.array([b"gr\xc3\xbcn"], dtype=object)
    servable = load(path)
    assert servable.predict({"a": words, "b": words}, {})["kinds"].tolist() == [b"strbytes"]
    with pytest.raises(InvalidInput, match="UTF-8"):
        servable.predict({"a": np.array([b"\xff"], dtype=object), "b": words}, {})


def test_annotations_declare_when_they_are_declarations(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        def f(x: "f4[n, 3]", k: "i8[n]" = None) -> {"y": "f4[n]"}:
            return x.sum(axis=1) if k is None else x.sum(axis=1) * k
        """,
    )
    signature = load(f"{path}:f").signature
    assert [(spec.name, spec.datatype, spec.optional) for spec in signature.inputs] == [
        ("x", "FP32", False),
        ("k", "INT64", True),
    ]
    assert signature.outputs == (parse_spec("y", "f4[n]"),)
    assert signature.batchable
    assert load(f"{path}:f").predict({"x": X}, {})["y"].tolist() == [3.0, 12.0]


def test_annotations_under_future_import_are_read_without_running_them(tmp_path: Path) -> None:
    path = tmp_path / f"user_model_{next(NUMBERS)}.py"
    path.write_text('from __future__ import annotations\ndef f(x: "f4[n]", y: boom()) -> "f4[n]":\n    return x\n')
    assert load(f"{path}:f").signature.metadata["dynamic"] == "true"
    path = tmp_path / f"user_model_{next(NUMBERS)}.py"
    path.write_text('from __future__ import annotations\ndef f(x: "f4[n]") -> "f4[n]":\n    return x\n')
    assert load(f"{path}:f").signature.outputs == (parse_spec("output", "f4[n]"),)


def test_undeclared_function_is_dynamic_and_not_batched(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        def add(a, b: float = 1.0) -> float:
            return a + b
        """,
    )
    servable = load(f"{path}:add")
    assert servable.signature.inputs == ()
    assert servable.signature.metadata["dynamic"] == "true"
    assert servable.signature.metadata["arguments"] == "a, b"
    assert not servable.signature.batchable
    assert servable.predict({"a": np.ones(2)}, {})["output"].tolist() == [2.0, 2.0]
    with pytest.raises(InvalidInput, match="the model takes a, b; the request has c"):
        servable.predict({"c": np.ones(2)}, {})
    assert load(f"{path}:add", options={"batch": True}).signature.batchable


def test_undeclared_class_is_batched_unless_told_not_to(tmp_path: Path) -> None:
    path = write(tmp_path, "class Model:\n    def predict(self, inputs):\n        return inputs\n")
    assert load(path).signature.batchable
    assert not load(path, options={"batch": False}).signature.batchable


def test_declared_batch_travels_with_the_signature(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        @penstock.model(batch=penstock.Batch(max_size=8, delay_s=0.01, sizes=(1, 8)))
        class Model:
            def predict(self, inputs):
                return inputs
        """,
    )
    signature = load(path).signature
    assert signature.batchable
    assert signature.batch is not None
    assert (signature.batch.max_size, signature.batch.delay_s, signature.batch.sizes) == (8, 0.01, (1, 8))


def test_declarations_of_the_user_come_before_those_in_code(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        @penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"})
        def f(x):
            return x
        """,
    )
    signature = load(path, inputs=(parse_spec("x", "f4[4]"),), outputs=(parse_spec("y", "f4[4]"),)).signature
    assert signature.inputs[0].datatype == "FP32"
    assert not signature.batchable


@pytest.mark.parametrize("arguments", ["y", "x, y", "x, *, z"])
def test_arguments_that_do_not_match_the_declaration_are_refused(arguments: str, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        f"""
        @penstock.model(inputs={{"x": "f4[n]"}}, outputs={{"r": "f4[n]"}})
        def f({arguments}):
            return 1
        """,
    )
    with pytest.raises(LoadError, match="name them alike"):
        load(path)


def test_async_model_is_awaited_and_may_hold_several_batches(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        import asyncio

        class Model:
            async def predict(self, inputs):
                await asyncio.sleep(0)
                return {"y": inputs["x"] + 1}

        @penstock.model(concurrency=2)
        async def two(x):
            return x
        """,
    )
    servable = load(f"{path}:Model")
    assert servable.signature.concurrency == 16
    assert load(f"{path}:two").signature.concurrency == 2
    assert load(f"{path}:two", options={"concurrency": 5}).signature.concurrency == 5
    found = servable.predict({"x": X}, {})
    assert inspect.isawaitable(found)

    async def wait() -> Any:
        return await found

    np.testing.assert_array_equal(asyncio.run(wait())["y"], X + 1)


def test_concurrency_of_a_plain_function_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "@penstock.model(concurrency=4)\ndef f(x):\n    return x\n")
    with pytest.raises(LoadError, match="add workers"):
        load(path)


GENERATOR = """
    closed = []

    @penstock.model(inputs={"x": "i8[]"}, outputs={"y": "i8[]"})
    def count(x):
        try:
            for number in range(int(x)):
                yield number
        finally:
            closed.append(True)
"""


def test_generator_streams_and_closes_when_the_client_leaves(tmp_path: Path) -> None:
    servable = load(write(tmp_path, GENERATOR))
    assert servable.signature.streaming
    assert not servable.signature.batchable
    assert isinstance(servable, StreamingServable)
    answers = servable.answer({"x": np.array(3)}, {})
    assert isinstance(answers, Iterator)
    assert [answer["y"].item() for answer in answers] == [0, 1, 2]
    answers = servable.answer({"x": np.array(1000)}, {})
    next(answers)  # type: ignore[arg-type]  # an iterator, as was asserted
    closed = sys.modules[Path(servable._call.function.__code__.co_filename).stem].closed  # type: ignore[attr-defined]
    assert len(closed) == 1
    answers.close()  # type: ignore[union-attr]  # a generator
    assert len(closed) == 2


def test_plain_request_to_a_stream_needs_exactly_one_answer(tmp_path: Path) -> None:
    servable = load(write(tmp_path, GENERATOR))
    assert servable.predict({"x": np.array(1)}, {})["y"].item() == 0  # type: ignore[index]  # not awaitable
    for count in (0, 2):
        with pytest.raises(Unsupported, match="ask for a stream"):
            servable.predict({"x": np.array(count)}, {})


def test_async_generator_streams_and_closes(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        closed = []

        class Model:
            async def answer(self, inputs, parameters):
                try:
                    for number in range(int(inputs["x"])):
                        yield {"y": number * parameters["step"]}
                finally:
                    closed.append(True)
            def predict(self, inputs):
                return {"y": -1}
        """,
    )
    servable = load(path)
    assert servable.signature.streaming
    assert isinstance(servable, StreamingServable)

    async def read(count: int) -> list[int]:
        answers = servable.answer({"x": np.array(5)}, {"step": 2})
        assert isinstance(answers, AsyncIterator)
        found = []
        async for answer in answers:
            found.append(answer["y"].item())
            if len(found) == count:
                break
        await answers.aclose()  # type: ignore[attr-defined]  # an async generator
        return found

    assert asyncio.run(read(5)) == [0, 2, 4, 6, 8]
    assert asyncio.run(read(2)) == [0, 2]
    assert len(sys.modules[path.stem].closed) == 2
    assert servable.predict({"x": np.array(5)}, {})["y"].item() == -1  # type: ignore[index]  # not awaitable


def test_iterator_of_the_users_own_is_closed_too(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        class Lines:
            closed = 0
            def __iter__(self):
                return self
            def __next__(self):
                return {"y": 1}
            def close(self):
                self.closed += 1

        lines = Lines()

        class Model:
            def answer(self, inputs):
                return lines
        """,
    )
    servable = load(f"{path}:Model")
    assert isinstance(servable, StreamingServable)
    answers = servable.answer({}, {})
    next(answers)  # type: ignore[arg-type]  # an iterator
    answers.close()  # type: ignore[union-attr]  # a generator
    assert sys.modules[path.stem].lines.closed == 1


def test_error_in_user_code_passes_through_unchanged(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        @penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
        def f(x):
            if x[0] < 0:
                raise ValueError("negative")
            return x if x[0] else x.astype(str)
        """,
    )
    servable = load(path)
    with pytest.raises(ValueError, match="negative"):
        servable.predict({"x": -np.ones(1, np.float32)}, {})
    with pytest.raises(ServableError, match="declared is FP32"):
        servable.predict({"x": np.zeros(1, np.float32)}, {})


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
    examples = Path(__file__).parents[2] / "examples"
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
