"""What user code may give back, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.core.errors import ServableError
from penstock.core.tensor import TensorSpec, parse_spec
from penstock.runtime.returned import tensors

Y = (parse_spec("y", "f4[n]"),)
TWO = (parse_spec("a", "i8[n]"), parse_spec("b", "str[n]"))


@pytest.mark.parametrize(
    "value", [{"y": [1, 2]}, {"y": np.array([1.0, 2.0])}, [1, 2], np.array([1, 2], np.int8), {"y": (1.0, 2.0)}]
)
def test_one_output_is_cast_to_the_declared_type(value: object) -> None:
    found = tensors(value, Y)
    assert found["y"].dtype == np.float32
    assert found["y"].tolist() == [1.0, 2.0]


def test_tuple_is_taken_in_the_order_of_the_outputs() -> None:
    found = tensors(([1, 2], ["x", "y"]), TWO)
    assert found["a"].tolist() == [1, 2]
    assert found["b"].tolist() == [b"x", b"y"]


def test_outputs_come_in_declared_order() -> None:
    assert list(tensors({"b": ["x"], "a": [1]}, TWO)) == ["a", "b"]


def test_bytes_keep_zeros_at_their_end() -> None:
    assert tensors([b"a\0", b"\0"], (parse_spec("y", "bytes[n]"),))["y"].tolist() == [b"a\0", b"\0"]
    assert tensors({"y": [b"a\0"]}, ())["y"].tolist() == [b"a\0"]


def test_no_copy_is_made_of_an_array_that_fits() -> None:
    array = np.ones(3, np.float32)
    assert tensors(array, Y)["y"] is array


@pytest.mark.parametrize(
    ("value", "specs", "message"),
    [
        (None, Y, "gave back None"),
        ({}, Y, "gave no 'y'; it gave nothing"),
        ({"z": [1.0]}, Y, "gave no 'y'; it gave z"),
        ({"y": [1.0], "z": [1.0]}, Y, "z, which is not declared"),
        ({"y": [[1.0]]}, Y, r"shape \[1, 1\], declared is \[-1\]"),
        ([1.5], (parse_spec("y", "i8[n]"),), "is float64, declared is INT64"),
        (["text"], Y, "declared is FP32"),
        ([1], TWO, "gave one list, 2 outputs are declared"),
        (([1],), TWO, "gave 1 outputs, 2 are declared"),
        ({"y": [object()]}, (), "holds a object"),
        ({"y": [[1], [1, 2]]}, (), "is no array"),
        ({"y": np.array([1j])}, (), "complex"),
    ],
)
def test_wrong_results_are_the_models_fault(value: object, specs: tuple[TensorSpec, ...], message: str) -> None:
    with pytest.raises(ServableError, match=message):
        tensors(value, specs)


def test_optional_output_may_be_left_out() -> None:
    assert tensors({}, (parse_spec("y", "f4[n]?"),)) == {}


def test_undeclared_values_are_taken_as_numpy_sees_them() -> None:
    found = tensors({"number": 1.5, "words": ["a", "b"], "table": [[1, 2], [3, 4]]}, ())
    assert found["number"].shape == ()
    assert found["words"].tolist() == [b"a", b"b"]
    assert found["table"].dtype == np.int64
    assert list(tensors(np.ones(2), ())) == ["output"]
