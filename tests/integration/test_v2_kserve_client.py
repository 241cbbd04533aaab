"""KServe's own clients, V1 and V2, against a whole server.

kserve wants other versions than we do, so it has an environment of its own: `make test-kserve` makes that, and runs
these tests in it against a server of the main one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

kserve = pytest.importorskip("kserve", reason="kserve has an environment of its own: make test-kserve")

import httpx  # noqa: E402  # kserve brings it
from grpc import StatusCode  # noqa: E402
from grpc.aio import AioRpcError  # noqa: E402

MODELS = """
import penstock


@penstock.model(inputs={"x": "f4[n, k]"}, outputs={"y": "f4[n, k]"})
def double(x):
    return {"y": x * 2}


@penstock.model(inputs={"text": "str[n]", "half": "f2[n]"}, outputs={"upper": "str[n]", "more": "f2[n]"})
def mixed(text, half):
    if (half < 0).any():
        raise ValueError("negative")
    return {"upper": [str(word).upper() for word in text], "more": half + 1}
"""

X = np.arange(6, dtype="f4").reshape(2, 3)


@pytest.fixture(scope="module")
def running(shared_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("models") / "functions.py"
    file.write_text(MODELS)
    return shared_server({"double": f"{file}:double", "mixed": f"{file}:mixed"})


def request(*, raw: bool, **options: Any) -> Any:
    made = kserve.InferInput(name="x", shape=list(X.shape), datatype="FP32")
    made.set_data_from_numpy(X, binary_data=raw)
    return kserve.InferRequest(model_name="double", infer_inputs=[made], request_id="7", **options)


@pytest.mark.parametrize("raw", [True, False])
async def test_grpc_client_of_kserve_infers_with_raw_and_typed_contents(running: Any, raw: bool) -> None:
    client = kserve.InferenceGRPCClient(running.grpc)
    try:
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("double")
        response = await client.infer(request(raw=raw))
        (output,) = response.outputs
        assert (output.name, response.id, response.model_name) == ("y", "7", "double")
        np.testing.assert_array_equal(output.as_numpy(), X * 2)
        assert not await client.is_model_ready("nobody")
    finally:
        await client.close()


@pytest.mark.parametrize("raw", [True, False])
async def test_rest_client_of_kserve_infers_with_binary_and_json_data(running: Any, raw: bool) -> None:
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
    try:
        assert await client.is_server_live(running.http) and await client.is_server_ready(running.http)
        assert await client.is_model_ready(running.http, "double")
        response = await client.infer(running.http, request(raw=raw), model_name="double")
        np.testing.assert_array_equal(response.outputs[0].as_numpy(), X * 2)
    finally:
        await client.close()


def mixed_request() -> Any:
    text = kserve.InferInput(name="text", shape=[2], datatype="BYTES")
    text.set_data_from_numpy(np.array(["ab", "é"], dtype=object), binary_data=True)
    half = kserve.InferInput(name="half", shape=[2], datatype="FP16")
    half.set_data_from_numpy(np.array([0.5, 1.5], "f2"), binary_data=True)
    return kserve.InferRequest(model_name="mixed", infer_inputs=[text, half], parameters={"binary_data_output": True})


async def test_words_and_halves_go_over_both_protocols(running: Any) -> None:
    async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2")) as rest:
        answers = [await rest.infer(running.http, mixed_request(), model_name="mixed")]
    grpc = kserve.InferenceGRPCClient(running.grpc)
    try:
        answers.append(await grpc.infer(mixed_request()))
    finally:
        await grpc.close()
    for answer in answers:
        upper, more = (output.as_numpy() for output in answer.outputs)
        assert [word.decode() if isinstance(word, bytes) else word for word in upper] == ["AB", "É"]
        np.testing.assert_array_equal(more, np.array([1.5, 2.5], "f2"))


async def test_errors_carry_their_message_and_kind(running: Any) -> None:
    async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2")) as rest:
        with pytest.raises(httpx.HTTPStatusError, match=r"'nobody'.*404"):
            await rest.infer(running.http, request(raw=True), model_name="nobody")
        assert not await rest.is_model_ready(running.http, "nobody")
    grpc = kserve.InferenceGRPCClient(running.grpc)
    try:
        unknown = request(raw=True)
        unknown.model_name = "nobody"
        with pytest.raises(AioRpcError) as caught:
            await grpc.infer(unknown)
        assert caught.value.code() is StatusCode.NOT_FOUND
    finally:
        await grpc.close()


# V1

Rest = Any


@pytest.fixture
async def v1() -> Any:
    async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1")) as client:
        yield client


async def test_v1_client_sees_the_server_and_its_models(v1: Rest, running: Any) -> None:
    assert await v1.is_server_live(running.http)
    assert await v1.is_model_ready(running.http, "double")
    with pytest.raises(httpx.HTTPStatusError, match=r"'nobody'.*404"):
        await v1.is_model_ready(running.http, "nobody")


@pytest.mark.parametrize("key", ["instances", "inputs"])
async def test_v1_client_predicts(v1: Rest, running: Any, key: str) -> None:
    answer = await v1.infer(running.http, {key: X.tolist()}, model_name="double")
    assert answer == {"predictions": (X * 2).tolist()}


async def test_v1_client_sends_and_gets_several_tensors_by_row_and_by_column(v1: Rest, running: Any) -> None:
    rows = {"instances": [{"text": "ab", "half": 0.5}, {"text": "é", "half": 1.5}]}
    columns = {"inputs": {"text": ["ab", "é"], "half": [0.5, 1.5]}}
    by_row = [{"upper": "AB", "more": 1.5}, {"upper": "É", "more": 2.5}]
    by_column = {"upper": ["AB", "É"], "more": [1.5, 2.5]}
    for body, predictions in ((rows, by_row), (columns, by_column)):
        assert await v1.infer(running.http, body, model_name="mixed") == {"predictions": predictions}


async def test_v1_client_is_told_what_is_wrong(v1: Rest, running: Any) -> None:
    for body, says in (
        ({"instances": []}, "400"),
        ({"rows": [[1.0]]}, "instances.*400"),
        ({"instances": [["a", "b"]]}, "400"),
        ({"instances": [{"text": "a", "half": -1}]}, "negative.*500"),
    ):
        with pytest.raises(httpx.HTTPStatusError, match=says):
            await v1.infer(running.http, body, model_name="mixed")
    with pytest.raises(httpx.HTTPStatusError, match="501"):
        await v1.explain(running.http, "double", {"instances": X.tolist()})
