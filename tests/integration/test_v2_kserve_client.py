"""KServe's own clients against a whole server. kserve wants older pandas and psutil: give it its own environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

kserve = pytest.importorskip("kserve")

MODELS = """
import penstock


@penstock.model(inputs={"x": "f4[n, k]"}, outputs={"y": "f4[n, k]"})
def double(x):
    return {"y": x * 2}
"""

X = np.arange(6, dtype="f4").reshape(2, 3)


@pytest.fixture
def running(server: Callable[..., Any], tmp_path: Path) -> Any:
    file = tmp_path / "functions.py"
    file.write_text(MODELS)
    return server({"double": f"{file}:double"})


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
