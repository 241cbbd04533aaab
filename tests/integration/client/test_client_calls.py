"""Both clients against an independent server of the V2 protocol."""

from __future__ import annotations

import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from v2_peer import V2Server

from penstock.client import Client
from penstock.core.errors import InvalidInput, NotFound, ServableError
from penstock.core.tensor import NUMPY_OF


@pytest.mark.parametrize("datatype", sorted(set(NUMPY_OF) - {"BYTES"}))
@pytest.mark.parametrize("shape", [(), (0, 4), (3,), (2, 3, 4)])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_every_datatype_returns_as_it_was_sent(
    connect: Any, peer: V2Server, datatype: str, shape: tuple[int, ...], compression: str | None
) -> None:
    sent = (np.arange(np.prod(shape), dtype=np.float64) - 1).reshape(shape).astype(NUMPY_OF[datatype])
    client = connect(peer.url, compression=compression)
    result = client.call("infer", "echo", {"x": sent}, datatypes={"x": datatype}, request_id="r1")
    assert (list(result), result.model, result.version, result.id) == (["x"], "echo", "1", "r1")
    assert result["x"].dtype == sent.dtype and result["x"].shape == shape
    np.testing.assert_array_equal(result["x"], sent)
    (head,) = peer.bodies
    assert head["inputs"][0]["datatype"] == datatype  # type: ignore[index]
    assert ("content-encoding" in peer.heads[0]) == (compression is not None)


def test_text_and_bytes_go_both_ways(connect: Any, peer: V2Server) -> None:
    client = connect(peer.url)
    rows = [["a", "é"], ["", "z\0"]]
    result = client.call("infer", "echo", {"a": rows, "b": [b"\xff\0", b""], "c": np.array(["x", "yy"]), "d": "one"})
    assert result["a"].tolist() == [[b"a", "é".encode()], [b"", b"z\0"]]
    assert result.text("a").tolist() == rows
    assert result["b"].tolist() == [b"\xff\0", b""]
    assert result.text("c").tolist() == ["x", "yy"]
    assert result["d"].shape == () and result["d"].item() == b"one"


def test_an_array_that_is_not_contiguous_or_big_endian_arrives_whole(connect: Any, peer: V2Server) -> None:
    sent = np.arange(24, dtype=">i4").reshape(4, 6)[:, ::2]
    result = connect(peer.url).call("infer", "echo", {"x": sent})
    np.testing.assert_array_equal(result["x"], sent)


def test_bfloat16_arrays_need_no_datatype(connect: Any, peer: V2Server) -> None:
    sent = np.array([1.5, -2.25], dtype=ml_dtypes.bfloat16)
    result = connect(peer.url).call("infer", "echo", {"x": sent})
    assert peer.bodies[0]["inputs"][0]["datatype"] == "BF16"  # type: ignore[index]
    np.testing.assert_array_equal(result["x"], np.array([1.5, -2.25], dtype=np.float32))


def test_lists_and_numbers_take_the_datatype_that_the_model_wants_and_it_is_asked_once(
    connect: Any, peer: V2Server
) -> None:
    client = connect(peer.url)
    for _ in range(3):
        result = client.call("infer", "wide", {"x": [1, 2], "n": 7, "s": ["t"]})
        assert [result[name].dtype for name in ("x", "n")] == [np.float32, np.uint8]
    datatypes = [one["datatype"] for one in peer.bodies[0]["inputs"]]  # type: ignore[attr-defined]
    assert datatypes == ["BF16", "UINT8", "BYTES"]
    assert peer.paths.count("/v2/models/wide") == 1
    with pytest.raises(InvalidInput, match="input 'n': values do not fit uint8"):
        client.call("infer", "wide", {"x": [1.0], "n": [300]})


def test_arrays_need_no_metadata(connect: Any, peer: V2Server) -> None:
    connect(peer.url).call("infer", "echo", {"x": np.zeros(2, np.float32)})
    assert peer.paths == ["/v2/models/echo/infer"]


def test_what_cannot_be_sent_is_named(connect: Any, peer: V2Server) -> None:
    client = connect(peer.url)
    with pytest.raises(InvalidInput, match="input 'x': numpy type complex128"):
        client.call("infer", "echo", {"x": np.zeros(2, complex)})
    with pytest.raises(InvalidInput, match="at least one input"):
        client.call("infer", "echo", {})
    with pytest.raises(InvalidInput, match="unknown datatype 'FP31'"):
        client.call("infer", "echo", {"x": [1]}, datatypes={"x": "FP31"})
    with pytest.raises(InvalidInput, match="parameters must be"):
        client.call("infer", "echo", {"x": np.zeros(1)}, parameters={"p": object()})
    assert peer.paths == []


def test_answers_in_json_are_understood(connect: Any, peer: V2Server) -> None:
    inputs = {"x": np.array([[1.5, 2.5]], np.float32), "s": ["é", "b"], "b": np.array([True, False])}
    result = connect(peer.url).call("infer", "echo", inputs, parameters={"as_json": True})
    np.testing.assert_array_equal(result["x"], inputs["x"])
    assert result.text("s").tolist() == ["é", "b"]
    assert result["b"].dtype == np.bool_


def test_version_parameters_and_wanted_outputs_reach_the_server(connect: Any, peer: V2Server) -> None:
    x = np.zeros(2, np.float32)
    result = connect(peer.url, api_key="k", headers={"X-Team": "a"}).call(
        "infer", "a model/with é", {"x": x, "y": x}, version=3, parameters={"p": 1.5}, outputs=["y"], timeout_s=2.0
    )
    assert list(result) == ["y"]
    (path,), (head,), (body,) = peer.paths, peer.heads, peer.bodies
    assert path == "/v2/models/a%20model%2Fwith%20%C3%A9/versions/3/infer"
    assert (head["authorization"], head["x-team"]) == ("Bearer k", "a")
    assert 0 < float(head["penstock-timeout-ms"]) <= 2000
    parameters = body["parameters"]
    assert isinstance(parameters, dict)
    assert parameters["p"] == 1.5
    assert 0 < parameters["timeout"] <= 2_000_000
    assert body["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]


def test_without_a_time_limit_none_is_sent(connect: Any, peer: V2Server) -> None:
    connect(peer.url, timeout_s=None).call("infer", "echo", {"x": np.zeros(1)})
    assert "penstock-timeout-ms" not in peer.heads[0]
    assert "timeout" not in peer.bodies[0]["parameters"]  # type: ignore[operator]


def test_timings_come_when_asked_for(connect: Any, peer: V2Server) -> None:
    inputs = {"x": np.zeros(1)}
    assert connect(peer.url).call("infer", "echo", inputs).timings == {}
    assert connect(peer.url, timing=True).call("infer", "echo", inputs).timings == {"queue": 0.0015, "compute": 0.002}


def test_an_array_of_an_answer_is_the_callers_own(connect: Any, peer: V2Server) -> None:
    result = connect(peer.url).call("infer", "echo", {"x": np.zeros(100_000), "y": np.zeros(3)})
    result["x"][:] = 1
    assert result["y"].sum() == 0


def test_large_tensors_arrive_whole(connect: Any, peer: V2Server) -> None:
    sent = np.random.default_rng(0).random((3, 1000, 1000), dtype=np.float32)
    result = connect(peer.url).call("infer", "echo", {"x": sent, "y": sent[0]})
    np.testing.assert_array_equal(result["x"], sent)
    np.testing.assert_array_equal(result["y"], sent[0])


def test_one_connection_carries_many_calls(connect: Any, peer: V2Server) -> None:
    client = connect(peer.url)
    for _ in range(5):
        client.call("infer", "echo", {"x": np.zeros(2)})
        client.call("metadata", "echo")
        with pytest.raises(NotFound):
            client.call("infer", "missing", {"x": np.zeros(2)})
        client.listed("echo", {"text_input": "a"})
    assert peer.connections == 1


def test_the_other_calls(connect: Any, peer: V2Server) -> None:
    client = connect(peer.url)
    assert client.call("live") and client.call("ready") and client.call("ready", "echo")
    assert not client.call("ready", "cold")
    assert client.call("server")["name"] == "peer"
    assert client.call("models") == ["echo"]
    assert [(one.name, one.state) for one in client.call("index")] == [("echo", "READY"), ("cold", "")]
    metadata = client.call("metadata", "wide")
    assert (metadata.name, metadata.versions, metadata.platform) == ("wide", ("1",), "peer")
    first = metadata.inputs[0]
    assert (first.name, first.datatype, first.shape) == ("x", "BF16", (-1, 4))
    assert client.call("config", "echo") == {"max_batch_size": 8}
    (statistics,) = client.call("statistics", "echo")
    assert (statistics.name, statistics.inference_count, statistics.queue.ns) == ("echo", 12, 6_000_000)
    assert statistics.batches[4].compute_infer.count == 3
    assert len(client.call("statistics")) == 2
    client.call("load", "cold", config={"max_batch_size": 4}, files={"1/model.onnx": b"\x00\x01"})
    client.call("unload", "cold")
    assert peer.bodies == [
        {"parameters": {"config": '{"max_batch_size":4}', "file:1/model.onnx": "AAE="}},
        {},
    ]
    with pytest.raises(NotFound, match="unknown model 'nobody'"):
        client.call("metadata", "nobody")


def test_generate_and_stream(connect: Any, peer: V2Server) -> None:
    client = connect(peer.url)
    assert client.call("generate", "echo", {"text_input": "hi"}) == {"text_output": "HI"}
    assert client.listed("echo", {"text_input": "w"}) == [{"text_output": f"w{n}"} for n in range(3)]
    assert client.listed("echo", {"text_input": "w"}, parameters={"count": 0}) == []
    with pytest.raises(ServableError, match="out of words"):
        client.listed("echo", {"text_input": "fail"})


def test_leaving_a_stream_ends_it_at_the_server(connect: Any, peer: V2Server) -> None:
    client = connect(peer.url)
    assert len(client.listed("echo", {"text_input": "w"}, parameters={"count": 10**7}, first=2)) == 2
    assert peer.broken_pipes.wait(10)


def test_threads_share_a_client_and_get_their_own_answers(peer: V2Server) -> None:
    wrong: list[int] = []
    with Client(peer.url) as client:

        def work(number: int) -> None:
            for step in range(25):
                sent = np.full(3, number * 1000 + step)
                if not np.array_equal(client.infer("echo", {"x": sent})["x"], sent):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert peer.connections <= 8
