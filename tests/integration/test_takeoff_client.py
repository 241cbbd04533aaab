"""Titan Takeoff's own client against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from running_server import RunningServer, ServerFactory
from takeoff_client import TakeoffClient, TakeoffException


def client_of(running: RunningServer) -> TakeoffClient:
    port = int(running.http.rpartition(":")[2])
    return TakeoffClient(base_url="http://127.0.0.1", port=port, mgmt_port=port, oai_port=port)


@pytest.fixture(scope="module")
def running(shared_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    path = tmp_path_factory.mktemp("model") / "echo.llmecho"
    path.touch()
    return shared_server({"echo": str(path)})


@pytest.fixture
def client(running: RunningServer) -> TakeoffClient:
    return client_of(running)


def test_texts_come_back_as_they_were_asked_for(client: TakeoffClient) -> None:
    assert client.generate("say:hello") == {"text": "hello"}
    assert client.generate(["say:one", "say:two"]) == {"text": ["one", "two"]}
    answer = client.generate("say:hello", return_metadata=True)
    assert answer["metadata"] == {"finish_reason": "stop", "prompt_tokens": 10, "generated_tokens": 6}
    assert client.generate("say:" + "x" * 300)["text"] == "x" * 128, "128 tokens where nothing is said"
    assert client.generate("say:hello", max_new_tokens=2)["text"] == "he"
    assert client.generate("say:hello", min_new_tokens=7, max_new_tokens=20)["text"] == "hellohe"


async def test_the_asynchronous_calls_are_the_same(client: TakeoffClient) -> None:
    assert (await client.generate_async("say:hello"))["text"] == "hello"
    pieces = [event.data async for event in client.generate_stream_async("say:a b\n")]
    assert "".join(pieces) == "a b"
    assert (await client.get_status_async())["ready"] is True


def test_line_ends_of_all_kinds_stay_line_ends(client: TakeoffClient) -> None:
    pieces = client.generate_stream("say:a\rb")
    assert "".join(event.data for event in pieces) == "a\nb", "an event has one kind of them"


@pytest.mark.parametrize("text", ["hello", " two  spaces ", "naïve ✓ 🙂", "data: x", ":colon"])
def test_a_stream_joins_to_the_same_text(client: TakeoffClient, text: str) -> None:
    assert "".join(event.data for event in client.generate_stream("say:" + text)) == text
    assert client.generate("say:" + text)["text"] == text


def test_a_stream_of_several_prompts_tells_them_apart(client: TakeoffClient) -> None:
    texts = ["", ""]
    for event in client.generate_stream(["say:one", "say:two"]):
        piece = json.loads(event.data)
        texts[piece["index"]] += piece["text"]
    assert texts == ["one", "two"]


def test_vectors_come_by_both_routes(client: TakeoffClient, running: RunningServer) -> None:
    answer = client.embed(["one", "two"], consumer_group="echo")
    assert [len(one["embedding"]) for one in answer["data"]] == [8, 8]
    assert client.embed("one", consumer_group="primary")["data"][0]["embedding"] == answer["data"][0]["embedding"]
    old = httpx.post(running.http + "/embed", json={"text": "one", "consumer_group": "primary"})
    assert old.json()["result"] == pytest.approx(answer["data"][0]["embedding"])


def test_tokens_go_there_and_back(client: TakeoffClient) -> None:
    tokens = client.tokenize("hello", "echo", use_chat_template=False)
    assert tokens == ["h", "e", "l", "l", "o"]
    assert client.detokenize(tokens, "echo") == "hello"
    assert client.detokenize([104, 105], "echo") == "hi"  # type: ignore[list-item]  # ids are taken too
    assert client.tokens_count("hello", "echo") == 5
    conversation = [{"role": "user", "content": "hello"}]
    (prompt,) = client.chat_template([conversation], "echo", add_generation_prompt=True)
    assert "hello" in prompt


def test_readers_are_the_servers_models(client: TakeoffClient) -> None:
    (reader,) = client.get_readers()["primary"]
    assert reader["reader_id"] == "echo"
    assert client.get_reader_config("echo")["device"] == "cpu"
    assert client.get_status()["readers"] == {"primary": [{"reader_id": "echo", "ready": True}]}
    created = client.create_reader({"model_name": "echo", "device": "cpu", "consumer_group": "primary"})
    assert created["reader_id"] == "echo", "it was there already"
    with pytest.raises(TakeoffException) as caught:
        client.delete_reader("echo")
    assert "model_control" in str(caught.value)


def test_readers_come_and_go_where_the_server_allows_it(server: ServerFactory, llmecho: Path) -> None:
    models = {"a": str(llmecho), "b": str(llmecho)}
    client = client_of(server(models, model_control="explicit", load_models=["a"]))
    created = client.create_reader({"model_name": "b", "device": "cpu", "consumer_group": "second"})
    assert created["consumer_group"] == "second"
    assert sorted(client.get_readers()) == ["primary", "second"]
    assert client.generate("say:x", consumer_group="second")["text"] == "x"
    client.delete_reader("b")
    assert sorted(client.get_readers()) == ["primary"]
    with pytest.raises(TakeoffException, match="404"):
        client.delete_reader("b")


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        ({"consumer_group": "other"}, 404, "no consumer group"),
        ({"regex_string": "[0-9]+"}, 400, "regex"),
        ({"no_repeat_ngram_size": 3}, 400, "no_repeat_ngram_size"),
        ({"sampling_topp": 7.0}, 400, "sampling_topp"),
        ({"max_new_tokens": 10**6}, 413, "max_new_tokens"),
        ({"lora_id": "polite"}, 400, "lora_id"),
        ({"json_schema": {"type": "object"}}, 400, "grammar"),
        ({"regex_string": "("}, 400, "regex_string"),
        ({"json_schema": {"$ref": "#/nowhere"}}, 400, "json_schema.$ref"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: TakeoffClient, more: dict[str, object], status: int, told: str
) -> None:
    for ask in (client.generate, lambda text, **more: list(client.generate_stream(text, **more))):
        with pytest.raises(TakeoffException) as caught:
            ask("say:hello", **more)
        assert caught.value.status_code == status
        assert told in str(caught.value)


def test_images_are_refused(client: TakeoffClient, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(b"\x89PNG")
    with pytest.raises(TakeoffException, match="takes images") as caught:
        client.generate("what is it?", image_path=image)
    assert caught.value.status_code == 400
