"""`@penstock.model` and `penstock.Batch`: what they say, and what they refuse."""

from __future__ import annotations

import pytest

import penstock
from penstock.core.declare import Batch, declaration_of
from penstock.core.errors import InvalidInput
from penstock.core.tensor import TensorSpec


def test_decorated_function_stays_the_same_callable() -> None:
    def double(x: int) -> int:
        return 2 * x

    decorated = penstock.model(inputs={"x": "i8[n]"}, outputs={"y": "i8[n]"})(double)
    assert decorated is double
    assert decorated(4) == 8


def test_bare_decorator_declares_nothing() -> None:
    @penstock.model
    class Model:
        pass

    declaration = declaration_of(Model)
    assert declaration is not None
    assert (declaration.inputs, declaration.outputs, declaration.batchable) == (None, None, None)


def test_declaration_is_not_inherited() -> None:
    @penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
    class Model:
        pass

    class Other(Model):
        pass

    assert declaration_of(Model) is not None
    assert declaration_of(Other) is None


@pytest.mark.parametrize(
    ("inputs", "outputs", "batchable"),
    [
        ({"x": "f4[n, 4]"}, {"y": "i8[n]"}, True),
        ({"x": "f4[-1, 4]"}, {"y": "i8[n]"}, True),
        ({"x": "f4[n, 4]"}, {"y": "i8[m]"}, False),
        ({"x": "f4[n, 4]", "z": "f4[k]"}, {"y": "i8[n]"}, False),
        ({"x": "f4[4]"}, {"y": "i8[4]"}, False),
        ({"x": "f4[n]"}, {"y": "f4[]"}, False),
        ({"x": "f4[n]"}, None, None),
        ({"x": TensorSpec("x", "FP32", (-1,))}, {"y": "f4[n]"}, True),
    ],
)
def test_batch_is_axis_0_when_it_is_one_word_everywhere(
    inputs: dict[str, str | TensorSpec], outputs: dict[str, str | TensorSpec] | None, batchable: bool | None
) -> None:
    declared = declaration_of(penstock.model(inputs=inputs, outputs=outputs)(lambda x: x))
    assert declared is not None
    assert declared.batchable is batchable


def test_batch_false_keeps_requests_apart() -> None:
    declared = declaration_of(penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"}, batch=False)(lambda x: x))
    assert declared is not None
    assert declared.batchable is False


def test_batch_against_the_shapes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the same word as axis 0"):
        penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[m]"}, batch=Batch(max_size=4))


def test_text_inputs_are_those_declared_str() -> None:
    declared = declaration_of(penstock.model(inputs={"a": "str[n]", "b": "bytes[n]"})(lambda a, b: a))
    assert declared is not None
    assert declared.text == {"a"}
    assert [spec.datatype for spec in declared.inputs or ()] == ["BYTES", "BYTES"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_size": 0}, "at least 1 row"),
        ({"delay_s": -1.0}, "not negative"),
        ({"delay_s": float("nan")}, "not negative"),
        ({"sizes": (4, 2)}, "ascending"),
        ({"sizes": (0, 2)}, "at least 1"),
    ],
)
def test_batch_that_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Batch(**arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_batch_is_never_larger_than_its_largest_size() -> None:
    assert Batch(max_size=64, sizes=(1, 8)).max_size == 8


def test_unreadable_declaration_is_refused_where_it_is_written() -> None:
    with pytest.raises(InvalidInput, match="cannot read the declaration 'float32'"):
        penstock.model(inputs={"x": "float32"})
    with pytest.raises(InvalidInput, match="at least 1 batch"):
        penstock.model(concurrency=0)
