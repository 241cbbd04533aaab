from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
from http_calls import Calls, body_of, json_of
from numpy_door import NumpyDoor, numpy_model

from penstock.core.tensor import datatype_of
from penstock.protocols import HttpResponse
from penstock.protocols.predict_http import plug

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def person(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    return {"name": inputs["name"], "next": inputs["age"] + 1}


@pytest.fixture
def door() -> NumpyDoor:
    return NumpyDoor(
        {
            "sum": numpy_model({"x": "f4[n, 2]"}, {"y": "f4[n]"}, predict=lambda inputs, _: {"y": inputs["x"].sum(1)}),
            "matrix": numpy_model({"x": "f4[n, 2]"}, {"y": "f4[n, 2]"}, predict=lambda inputs, _: {"y": inputs["x"]}),
            "column": numpy_model({"x": "i2[n]"}, {"y": "i2[n]"}, predict=lambda inputs, _: {"y": inputs["x"]}),
            "half": numpy_model({"x": "f2[n]"}, {"y": "f2[n]"}, predict=lambda inputs, _: {"y": inputs["x"]}),
            "people": numpy_model(
                {"name": "str[n]", "age": "i4[n]"}, {"name": "str[n]", "next": "i4[n]"}, predict=person
            ),
            "text": numpy_model({"t": "str[n, 1]"}, {"t": "str[n, 1]"}, predict=lambda inputs, _: {"t": inputs["t"]}),
        }
    )


@pytest.fixture
def call(door: NumpyDoor) -> Calls:
    return Calls([plug], door)


async def ask(call: Calls, model: str, body: bytes, kind: str = "application/x-www-form-urlencoded") -> Any:
    """What curl gets: it labels every body as a form unless told otherwise."""
    response = await call("POST", f"/predict/{model}", body, {"Content-Type": kind})
    return json_of(response)["predictions"] if response.status == 200 else response.status


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "body",
    [b"[1, 2]", b"[[1, 2]]", b'{"x": [1, 2]}', b'{"x": [[1, 2]]}', b'{"inputs": [1, 2]}', b'[{"x": [1, 2]}]', b"1,2",
     b"1,2\n", b"a,b\n1,2\n", b' {"inputs": {"x": [[1, 2]]}}'],
)  # fmt: skip
async def test_one_row_can_be_written_in_many_ways(call: Calls, body: bytes) -> None:
    assert await ask(call, "sum", body) == [3.0]


async def test_the_answer_says_which_model_and_version(call: Calls) -> None:
    response = await call("POST", "/predict/sum/1", b"[1, 2]")
    assert json_of(response) == {"model": "sum", "version": "1", "predictions": [3.0]}
    assert (await call("POST", "/predict/sum/2", b"[1, 2]")).status == 404


async def test_several_inputs_are_named_or_rows(call: Calls) -> None:
    expected = {"name": ["a", "b"], "next": [2, 3]}
    for body in (
        b'{"name": ["a", "b"], "age": [1, 2]}', b'[{"name": "a", "age": 1}, {"age": 2, "name": "b"}]',
        b'[["a", 1], ["b", 2]]', b"age,name\n1,a\n2,b\n", b"a,1\nb,2\n",
    ):  # fmt: skip
        assert await ask(call, "people", body) == expected
    assert await ask(call, "people", b'{"name": "a", "age": 1}') == {"name": ["a"], "next": [2]}


async def test_csv_by_its_content_type(call: Calls) -> None:
    assert await ask(call, "sum", "\ufeff1.5,2\r\n3,4e0\r\n".encode(), "text/csv; charset=utf-8") == [3.5, 7.0]
    assert await ask(call, "column", b"x\n7\n", "text/csv") == [7]
    assert await ask(call, "text", b'"one, two"\nthree\n', "text/csv") == [["one, two"], ["three"]]


@pytest.mark.parametrize("body", [b"1,2\n3\n", b"1,2,3\n", b"a,b\n", b"1,x\n", b'"1,2\n', b"\xff\xfe1,2", b"", b"\n\n"])
async def test_csv_that_does_not_fit_is_400(call: Calls, body: bytes) -> None:
    assert await ask(call, "sum", body, "text/csv") == 400


async def test_csv_integers_are_not_rounded(call: Calls) -> None:
    assert await ask(call, "column", b"1.5\n", "text/csv") == 400
    assert await ask(call, "column", b"40000\n", "text/csv") == 400


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<i4", "<f2", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
async def test_npy_files_of_any_number_type_are_read(call: Calls, dtype: str, order: Any) -> None:
    array = np.array([[1, 2], [3, 4]], dtype=dtype, order=order)
    assert await ask(call, "matrix", npy(array)) == [[1.0, 2.0], [3.0, 4.0]]


async def test_npy_texts_and_truths(call: Calls) -> None:
    assert await ask(call, "text", npy(np.array([["né"], ["x"]]))) == [["né"], ["x"]]
    assert await ask(call, "text", npy(np.array([[1]]))) == 400
    assert await ask(call, "column", npy(np.array([True]))) == 400


async def test_npy_numbers_are_neither_wrapped_nor_rounded_to_integers(call: Calls) -> None:
    assert await ask(call, "column", npy(np.array([40_000]))) == 400
    assert await ask(call, "column", npy(np.array([1.0]))) == 400
    assert await ask(call, "half", npy(np.array([70_000.0]))) == 400
    assert await ask(call, "column", npy(np.array([-3], dtype="i8"))) == [-3]


class Marker:
    touched = False

    def __reduce__(self) -> Any:
        return (setattr, (Marker, "touched", True))


async def test_npy_with_pickled_objects_is_refused_unopened(call: Calls) -> None:
    body = npy(np.array([[Marker()]], dtype=object), allow_pickle=True)
    assert await ask(call, "text", body) == 400
    assert await ask(call, "text", b"\x93NUMPY\x01\x00" + pickle.dumps(Marker())) == 400
    assert Marker.touched is False


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little") + text.encode()


@pytest.mark.parametrize(
    "body",
    [
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 2), }\n"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9223372036854775807, 9223372036854775807), }\n"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2), }\n"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 2), }\n") + b"\0" * 16,
        header("{'descr': '|V8', 'fortran_order': False, 'shape': (1,), }\n") + b"\0" * 8,
        header("{'descr': '|S0', 'fortran_order': False, 'shape': (5,), }\n"),
        header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }\n") + b"\0" * 4,
        header("__import__('os').getpid()\n"),
        header("(" * 3000 + "\n"),
        header("{'descr': '<f4'}\n"),
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00",
        npy(np.zeros((1, 2), "f4"))[:-1],
        npy(np.zeros((1, 2), "f4")) + b"x",
    ],
)
async def test_npy_headers_promise_nothing_that_is_not_there(call: Calls, body: bytes) -> None:
    assert await ask(call, "sum", body) == 400


async def test_text_models_take_plain_text_and_files(call: Calls) -> None:
    assert await ask(call, "text", b"hello, world") == [["hello, world"]]
    assert await ask(call, "text", b'"quoted"') == [["quoted"]]
    assert await ask(call, "text", b'"quoted"', "text/plain") == [['"quoted"']]
    assert await ask(call, "text", b"[1] is a footnote", "text/plain") == [["[1] is a footnote"]]
    assert await ask(call, "text", b"42") == [["42"]]
    assert await ask(call, "text", b'["a", "b"]') == [["a"], ["b"]]
    assert await ask(call, "text", b'[["a"], ["b"]]') == [["a"], ["b"]]


async def test_a_picture_is_one_element_and_comes_back_as_base64(call: Calls, door: NumpyDoor) -> None:
    for kind in ("image/png", "application/x-www-form-urlencoded", "application/octet-stream"):
        answer = await ask(call, "text", PNG, kind)
        assert list(answer[0][0]) == ["b64"]
        assert door.served["text"].seen[-1].inputs["t"].tolist() == [[PNG]]


async def test_a_picture_for_numbers_says_what_the_model_takes(call: Calls) -> None:
    response = await call("POST", "/predict/sum", PNG)
    assert response.status == 400
    assert "x FP32 [-1, 2]" in json_of(response)["error"]


async def test_half_floats_have_a_plain_form_here(call: Calls) -> None:
    assert await ask(call, "half", b"[0.5, 2]") == [0.5, 2.0]


@pytest.mark.parametrize(
    "body", [b"[1, 2", b'{"q": 1}', b'{"inputs": [1, 2], "more": 1}', b"[true, 2]", b'["1", 2]', b"{}", b"null"]
)
async def test_json_that_does_not_fit_is_400(call: Calls, body: bytes) -> None:
    assert await ask(call, "sum", body, "application/json") == 400


async def get(call: Calls, model: str, accept: str, body: bytes = b"[[1, 2], [3, 4]]", query: str = "") -> HttpResponse:
    return await call("POST", f"/predict/{model}{query}", body, {"Accept": accept})


async def test_npy_and_csv_answers(call: Calls) -> None:
    response = await get(call, "matrix", "application/x-npy")
    assert response.content_type == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(body_of(response))), [[1, 2], [3, 4]])
    response = await get(call, "matrix", "text/csv, */*")
    assert body_of(response) == b"1.0,2.0\n3.0,4.0\n"
    response = await get(call, "text", "application/x-npy", b'["a", "bc"]')
    assert np.load(io.BytesIO(body_of(response))).tolist() == [[b"a"], [b"bc"]]


async def test_several_outputs_need_a_choice_for_csv(call: Calls) -> None:
    rows = b'[["a", 1]]'
    assert (await get(call, "people", "text/csv", rows)).status == 400
    assert body_of(await get(call, "people", "text/csv", rows, "?output=next")) == b"2\n"
    assert (await get(call, "people", "text/csv", rows, "?output=q")).status == 400
    assert json_of(await get(call, "people", "*/*", rows, "?output=name"))["predictions"] == ["a"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"x": [1, 2]}', ("INT64", [1, 2])),
        (b'{"inputs": {"x": [[1, 2.5]]}}', ("FP64", [[1.0, 2.5]])),
        (b'[{"x": true}, {"x": false}]', ("BOOL", [True, False])),
        (b'{"x": "word"}', ("BYTES", b"word")),
    ],
)
async def test_inputs_that_nobody_declared_are_what_json_says(
    call: Calls, door: NumpyDoor, body: bytes, expected: tuple[str, Any]
) -> None:
    seen: list[Any] = []
    door.served["any"] = numpy_model(
        {}, {"y": "f8[n]"}, predict=lambda inputs, _: seen.append(inputs["x"]) or {"y": np.zeros(1)}
    )
    assert await ask(call, "any", body) == [0.0]
    (array,) = seen
    assert (datatype_of(array), array.tolist()) == expected


@pytest.mark.parametrize(
    "body", [b"[1, 2]", b"1,2", npy(np.zeros(2)), PNG, b'{"x": [[1], [1, 2]]}', b'{"x": [1, "a"]}', b'{"x": null}', b""]
)
async def test_what_has_no_name_or_no_type_is_refused_with_what_to_do(
    call: Calls, door: NumpyDoor, body: bytes
) -> None:
    door.served["any"] = numpy_model({}, {"y": "f8[n]"}, predict=lambda inputs, _: {"y": np.zeros(1)})
    response = await call("POST", "/predict/any", body)
    assert response.status == 400
    assert "takes nothing" not in json_of(response)["error"]
