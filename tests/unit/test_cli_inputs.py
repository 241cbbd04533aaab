"""What a person gives becomes what a model takes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from penstock.cli import inputs
from penstock.client.made_up import make_up
from penstock.core.errors import InvalidInput
from penstock.core.tensor import TensorSpec

TABLE = [TensorSpec("x", "FP32", (-1, 3))]
PAIR = [TensorSpec("age", "INT64", (-1, 1)), TensorSpec("name", "BYTES", (-1,))]


def read(given: str, specs: Sequence[TensorSpec], stdin: str | bytes = "") -> dict[str, np.ndarray]:
    return inputs.read(given, specs, io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin))


def test_values_get_the_model_s_datatype() -> None:
    made = read("[[1, 2, 3]]", TABLE)["x"]
    assert made.dtype == np.float32 and made.shape == (1, 3)
    assert read('{"age": [[3]], "name": ["Ada"]}', PAIR)["name"].tolist() == [b"Ada"]


def test_a_row_alone_gets_a_batch_axis_and_a_column_its_second_axis() -> None:
    assert read("[1, 2, 3]", TABLE)["x"].shape == (1, 3)
    assert read('{"age": [1, 2], "name": ["a", "b"]}', PAIR)["age"].shape == (2, 1)


def test_fractions_are_not_cut_to_whole_numbers() -> None:
    with pytest.raises(InvalidInput, match="fractions"):
        read('{"age": [[1.5]]}', PAIR)
    assert read('{"age": [[2.0]]}', PAIR)["age"].tolist() == [[2]]


def test_a_csv_with_the_inputs_names_is_read_by_column() -> None:
    made = read("-", PAIR, "name,age\nAda,36\nAlan,41\n")
    assert made["age"].tolist() == [[36], [41]]
    assert made["name"].tolist() == [b"Ada", b"Alan"]


def test_a_csv_without_names_is_one_table() -> None:
    assert read("-", TABLE, "1,2,3\n4,5,6\n")["x"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert read("-", TABLE, "a,b,c\n4,5,6\n")["x"].tolist() == [[4, 5, 6]]
    with pytest.raises(InvalidInput, match="different lengths"):
        read("-", TABLE, "1,2,3\n4,5\n")
    with pytest.raises(InvalidInput, match="age, name"):
        read("-", PAIR, "1,2\n")


def test_a_whole_request_keeps_its_shapes() -> None:
    given = '{"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}'
    assert read(given, TABLE)["x"].tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(InvalidInput, match="6 values for shape"):
        read(given.replace("[2, 3]", "[2, 2]"), TABLE)
    with pytest.raises(InvalidInput, match="needs name, shape"):
        read('{"inputs": [{"name": "x"}]}', TABLE)


def test_a_pickled_numpy_file_is_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "bad.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidInput, match="plain numbers"):
        read(str(tmp_path / "bad.npy"), TABLE)


def test_what_comes_through_a_pipe_is_told_apart_by_its_first_bytes() -> None:
    pillow = pytest.importorskip("PIL.Image")
    pixels = [TensorSpec("pixels", "UINT8", (-1, 2, 2, 3))]
    for kind in ("PNG", "JPEG", "GIF"):
        pillow.new("RGB", (4, 4), (255, 0, 0)).save(file := io.BytesIO(), format=kind)
        assert read("-", pixels, file.getvalue())["pixels"].shape == (1, 2, 2, 3)
        (sent,) = read("-", [TensorSpec("file", "BYTES", (-1,))], file.getvalue())["file"]
        assert sent == file.getvalue()
    np.save(file := io.BytesIO(), np.array([[1, 2, 3]]))
    assert read("-", TABLE, file.getvalue())["x"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01", b"\x89PNG\r\n\x1a\ncut off", b"\xff\xfe\r\x00\r1", b"\x00", b""])
def test_what_cannot_be_read_is_the_caller_s_fault(content: bytes) -> None:
    for specs in (TABLE, [TensorSpec("pixels", "UINT8", (-1, 2, 2, 3))]):
        with pytest.raises(InvalidInput):
            read("-", specs, content)


def test_a_model_without_declared_inputs_says_what_to_do() -> None:
    with pytest.raises(InvalidInput, match="declares no inputs: name them"):
        read("[1, 2]", [])
    with pytest.raises(InvalidInput, match="make up"):
        make_up([], rows=1)
    made = read('{"x": [1, 2], "word": "a"}', [])
    assert (made["x"].dtype, made["x"].tolist(), made["word"].tolist()) == (np.int64, [1, 2], b"a")


@pytest.mark.parametrize(
    ("shape", "datatype", "expected"),
    [
        ((-1, 3, 4, 6), "FP32", (1, 3, 4, 6)),
        ((1, 4, 6, 3), "UINT8", (1, 4, 6, 3)),
        ((-1, 1, 4, 4), "FP32", (1, 1, 4, 4)),
        ((-1, 3, -1, -1), "FP32", (1, 3, 8, 10)),
    ],
)
def test_an_image_is_resized_and_ordered_as_the_model_wants(
    tmp_path: Path, shape: tuple[int, ...], datatype: str, expected: tuple[int, ...]
) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (10, 8), (255, 0, 0)).save(tmp_path / "red.png")
    made = read(str(tmp_path / "red.png"), [TensorSpec("pixels", datatype, shape)])["pixels"]
    assert made.shape == expected
    if datatype == "UINT8":
        assert made[0, 0, 0].tolist() == [255, 0, 0]
    else:
        assert 0 < made.max() <= 1


def test_an_image_goes_as_it_is_to_a_model_that_takes_bytes(tmp_path: Path) -> None:
    (tmp_path / "any.png").write_bytes(b"\x89PNG")
    made = read(str(tmp_path / "any.png"), [TensorSpec("file", "BYTES", (-1,))])["file"]
    assert made.tolist() == [b"\x89PNG"]


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BF16", "INT8", "UINT64", "BOOL", "BYTES"])
def test_made_up_inputs_pass_the_model_s_own_check(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1, 2, -1))
    made = make_up([spec], rows=3)["x"]
    spec.check(made)
    assert made.shape == (3, 2, 1)
