"""The adapter for Python: what functions and classes get, declare and give back."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from python_files import NUMBERS, X, load, write

from penstock.core.errors import InvalidInput, LoadError
from penstock.core.tensor import parse_spec


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
