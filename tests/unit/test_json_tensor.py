from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from penstock.core.errors import InvalidInput, TooLarge
from penstock.core.json_tensor import MAX_RANK, array_of_json, array_of_value, fit, json_of_array
from penstock.core.tensor import TensorSpec, parse_spec

LIMIT = 1 << 20


def read(data: object, datatype: str, shape: tuple[int, ...], **options: Any) -> np.ndarray:
    return array_of_json(
        "x", msgspec.Raw(orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)), datatype, shape, LIMIT, **options
    )


def test_arrays_are_read_only() -> None:
    assert not read([1, 2], "FP32", (2,)).flags.writeable


def test_a_tensor_beyond_the_limit_is_too_large() -> None:
    with pytest.raises(TooLarge):
        array_of_json("x", msgspec.Raw(b"[]"), "FP64", (1 << 18, 1), LIMIT)


def test_nesting_is_bounded_by_the_depth_allowed() -> None:
    with pytest.raises(InvalidInput, match="3 deep"):
        read([[[1]]], "FP32", (1, 1, 1), max_depth=2)
    assert read([1], "FP32", (1, 1, 1), max_depth=2).shape == (1, 1, 1)


@pytest.mark.parametrize(
    ("declared", "value", "shape"),
    [
        ("f4[n, 4]", [1, 2, 3, 4], (1, 4)),
        ("f4[n, 1]", [1, 2, 3], (3, 1)),
        ("f4[n, 1]", 1, (1, 1)),
        ("f4[n]", 1, (1,)),
        ("f4", 1, ()),
        ("f4[n, 2, 2]", [[1, 2], [3, 4]], (1, 2, 2)),
        ("f4[n, k]", [], (1, 0)),
        ("f4[n, k]", [[], []], (2, 0)),
    ],
)
def test_axes_that_leave_no_doubt_are_added(declared: str, value: object, shape: tuple[int, ...]) -> None:
    assert array_of_value(value, parse_spec("x", declared)).shape == shape


def test_axes_are_not_invented_where_they_would_not_fit() -> None:
    spec = TensorSpec("x", "FP32", (-1, 4))
    assert fit((3,), spec) == (3,)
    assert fit((4,), spec, rows=True) == (4,)
    assert fit((1, 1, 4), spec) == (1, 1, 4)


def test_a_value_nested_beyond_numpys_rank_is_refused() -> None:
    value: object = 1
    for _ in range(MAX_RANK + 1):
        value = [value]
    with pytest.raises(InvalidInput, match="64 deep"):
        array_of_value(value, TensorSpec("x", "FP32", (-1,)))


def test_bytes_that_are_no_text_are_written_as_base64() -> None:
    array = np.array([[b"text", b"\xff"]], dtype=object)
    assert json_of_array(array) == [["text", {"b64": "/w=="}]]


LARGE = {
    "FP32": np.linspace(-1, 1, 6000, dtype="f4").reshape(3, 20, 100),
    "FP64": np.linspace(-1e300, 1e300, 6000).reshape(3, 20, 100),
    "INT8": (np.arange(6000) % 256 - 128).astype("i1").reshape(3, 20, 100),
    "UINT64": np.arange(2**64 - 6000, 2**64, dtype="u8").reshape(3, 20, 100),
}


@pytest.mark.parametrize("datatype", LARGE)
@pytest.mark.parametrize("nested", [True, False])
def test_large_tensors_are_read_exactly_with_and_without_simdjson(datatype: str, nested: bool) -> None:
    array = LARGE[datatype]
    got = read(array if nested else array.ravel(), datatype, array.shape)
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


def spoiled(array: np.ndarray, nested: bool, value: object) -> Any:
    data = array.tolist() if nested else array.ravel().tolist()
    if nested:
        data[1][2][3] = value
    else:
        data[1234] = value
    return data


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("FP32", True), ("FP32", None), ("FP32", "1"), ("FP32", [1]), ("FP32", 1e39), ("FP32", {}),
        ("INT8", 1.5), ("INT8", 1.0), ("INT8", 128), ("INT8", True), ("UINT64", -1), ("INT8", []),
    ],
)  # fmt: skip
def test_one_wrong_element_among_thousands_is_found(nested: bool, datatype: str, value: object) -> None:
    with pytest.raises(InvalidInput):
        read(spoiled(LARGE[datatype], nested, value), datatype, LARGE[datatype].shape)


@pytest.mark.parametrize("datatype", ["FP32", "INT8"])
def test_lists_of_wrong_lengths_are_found_among_thousands(datatype: str) -> None:
    array = LARGE[datatype]
    data = array.tolist()
    data[2][19].append(data[2][18].pop())
    with pytest.raises(InvalidInput):
        read(data, datatype, array.shape)
    with pytest.raises(InvalidInput):
        read(array.reshape(3, 100, 20), datatype, array.shape)
    with pytest.raises(InvalidInput):
        read(array.ravel()[:-1], datatype, array.shape)
