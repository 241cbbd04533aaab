"""The official client's stored responses, conversations and background responses against real servers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

MINE, OTHER = "a key for these tests", "the key of somebody else"
FOUR = "say:" + "x" * 80  # takes the slow model 4 s


@pytest.fixture(scope="module")
def running(shared_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("echo")
    path = folder / "echo.llmecho"
    path.touch()
    keys = folder / "keys"
    keys.write_text(f"{MINE}\n{OTHER}\n")
    keys.chmod(0o600)
    slow = {"path": str(path), "options": {"delay_s": 0.05, "max_running": 1}}
    models = {"echo": str(path), "mortal": str(path), "slow": slow}
    return shared_server(models, api_key_file=str(keys), fronts=2)


@pytest.fixture(scope="module")
def client(running: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key=MINE, max_retries=0) as found:
        yield found


def until(client: openai.OpenAI, id: str, *statuses: str) -> Any:
    deadline = time.monotonic() + 60
    while (response := client.responses.retrieve(id)).status not in statuses:
        assert response.status in ("queued", "in_progress") and time.monotonic() < deadline, response
        time.sleep(0.02)
    return response


def test_a_conversation_is_gone_on_from(client: openai.OpenAI) -> None:
    first = client.responses.create(model="echo", input="say:one", instructions="Be brief", metadata={"turn": "1"})
    assert first.to_dict()["store"] is True
    second = client.responses.create(model="echo", input="say:two", previous_response_id=first.id)
    assert second.output_text == "two" and second.previous_response_id == first.id and second.instructions is None
    assert second.usage.input_tokens > first.usage.input_tokens
    with client.responses.stream(model="echo", input="say:three", previous_response_id=second.id) as stream:
        third = stream.get_final_response()
    assert client.responses.retrieve(third.id).output_text == third.output_text == "three"
    assert client.responses.retrieve(first.id).to_dict() == first.to_dict()
    texts = [item.content[0].text for item in client.responses.input_items.list(third.id, order="asc", limit=2)]
    assert texts == ["say:one", "one", "say:two", "two", "say:three"]
    page = client.responses.input_items.list(third.id, limit=2)
    assert [item.content[0].text for item in page.data] == ["say:three", "two"] and page.has_more
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    fourth = client.responses.create(model="echo", input="say:four", previous_response_id=third.id)
    assert fourth.usage.input_tokens > third.usage.input_tokens
    for gone in (second.id, "resp_nobody"):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model="echo", input="a", previous_response_id=gone)
        assert refused.value.code == "previous_response_not_found"


def test_what_was_not_stored_is_not_there(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="echo", input="say:a", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="echo", input="a", conversation="conv_1")
    assert refused.value.param == "conversation"


def test_another_key_finds_nothing(running: Any, client: openai.OpenAI) -> None:
    mine = client.responses.create(model="echo", input="say:a")
    begun = client.responses.create(model="slow", input="say:ab", background=True)
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key=OTHER, max_retries=0) as other:
        for id in (mine.id, begun.id):
            for call in (
                other.responses.retrieve, other.responses.delete, other.responses.cancel,
                other.responses.input_items.list,
            ):  # fmt: skip
                with pytest.raises(openai.NotFoundError):
                    call(id)
        with pytest.raises(openai.BadRequestError) as refused:
            other.responses.create(model="echo", input="a", previous_response_id=mine.id)
        assert refused.value.code == "previous_response_not_found"
    assert until(client, begun.id, "completed").output_text == "ab"


def test_the_events_of_a_stored_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="echo", input="say:héllo")
    events = list(client.responses.retrieve(answer.id, stream=True))
    assert events[-1].type == "response.completed" and events[-1].response.to_dict() == answer.to_dict()
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "héllo"


def test_nobody_waits_for_a_response_in_the_background(client: openai.OpenAI) -> None:
    began = time.monotonic()
    response = client.responses.create(model="slow", input="say:" + "x" * 20, background=True, metadata={"a": "b"})
    assert response.status == "queued" and time.monotonic() - began < 0.9 and response.background is True
    until(client, response.id, "in_progress")
    ended = until(client, response.id, "completed")
    assert ended.output_text == "x" * 20 and ended.usage.output_tokens == 21 and ended.metadata == {"a": "b"}
    assert ended.completed_at >= ended.created_at and ended.id == response.id
    assert client.responses.cancel(response.id).status == "completed"
    after = client.responses.create(model="echo", input="say:after", previous_response_id=response.id)
    assert after.output_text == "after"


def test_a_cancelled_response_frees_its_sequence(client: openai.OpenAI) -> None:
    first = client.responses.create(model="slow", input=FOUR, background=True)
    queued = client.responses.create(model="slow", input=FOUR, background=True)
    until(client, first.id, "in_progress")
    assert client.responses.retrieve(queued.id).status == "queued"
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="echo", input="a", previous_response_id=first.id)
    began = time.monotonic()
    for id in (first.id, queued.id, first.id):
        assert client.responses.cancel(id).status == "cancelled"
    assert client.responses.create(model="slow", input="say:a").output_text == "a"
    assert time.monotonic() - began < 2, "the model ran on"
    waited = client.responses.create(model="echo", input="say:a")
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        client.responses.cancel(waited.id)
    assert client.responses.retrieve(first.id).status == "cancelled"


def test_a_response_in_the_background_fails_truthfully(client: openai.OpenAI) -> None:
    ended = until(client, client.responses.create(model="mortal", input="die:x", background=True).id, "failed")
    assert ended.error.code == "server_error" and ended.error.message and ended.output_text in ("", "x")
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="echo", input="a", background=True, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="nobody", input="a", background=True)


def test_the_events_of_a_response_in_the_background_are_read_from_anywhere(client: openai.OpenAI) -> None:
    events = []
    stream = client.responses.create(model="slow", input="say:" + "y" * 30, background=True, stream=True)
    for event in stream:
        events.append(event)
        if event.type == "response.output_text.delta":
            break
    stream.close()
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    id = events[0].response.id
    assert client.responses.retrieve(id).status == "in_progress"
    events += client.responses.retrieve(id, stream=True, starting_after=events[-1].sequence_number)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "y" * 30
    assert events[-1].type == "response.completed" and events[-1].response.output_text == "y" * 30
    again = list(client.responses.retrieve(id, stream=True))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in events]


def test_the_clients_own_helper_takes_a_stream_up_again(client: openai.OpenAI) -> None:
    stream = client.responses.create(model="slow", input="say:" + "w" * 20, background=True, stream=True)
    first = next(iter(stream))
    stream.close()
    assert first.type == "response.created"
    with client.responses.stream(response_id=first.response.id) as again:
        assert again.get_final_response().output_text == "w" * 20


def test_langchain_goes_on_from_earlier_answers(running: Any) -> None:
    model = ChatOpenAI(
        model="echo", base_url=f"{running.http}/v1", api_key=MINE, use_responses_api=True,
        use_previous_response_id=True,
    )  # fmt: skip
    talk: list[Any] = [HumanMessage("say:one")]
    first = model.invoke(talk)
    second = model.invoke([*talk, first, HumanMessage("say:two")])
    assert (first.text, second.text) == ("one", "two")
    assert second.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"]


def test_a_reader_that_leaves_is_told_apart(client: openai.OpenAI) -> None:
    stream = client.responses.create(model="slow", input="say:" + "z" * 60, stream=True)
    id = ""
    for event in stream:
        if event.type == "response.created":
            id = event.response.id
        if event.type == "response.output_text.delta":
            break
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(id)
    stream.close()
    deadline = time.monotonic() + 20
    while True:
        try:
            cut = client.responses.retrieve(id)
            break
        except openai.NotFoundError:
            assert time.monotonic() < deadline
    assert cut.status == "incomplete" and set(cut.output_text) == {"z"} and len(cut.output_text) < 60


def test_an_engine_that_dies_leaves_a_failed_response(client: openai.OpenAI) -> None:
    id = ""
    with pytest.raises(openai.APIError):
        for event in client.responses.create(model="mortal", input="die:hello", stream=True):
            id = event.response.id if event.type == "response.created" else id
    failed = client.responses.retrieve(id)
    assert failed.status == "failed" and failed.error.code == "server_error"


async def test_the_asynchronous_client(running: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{running.http}/v1", api_key=MINE, max_retries=0) as client:
        answer = await client.responses.create(model="echo", input="say:abc")
        assert (await client.responses.retrieve(answer.id)).output_text == "abc"
        assert [item.content[0].text async for item in client.responses.input_items.list(answer.id)] == ["say:abc"]
        kinds = [event.type async for event in await client.responses.retrieve(answer.id, stream=True)]
        assert kinds[-1] == "response.completed"
        await client.responses.delete(answer.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.delete(answer.id)


def test_answers_outlive_a_switch_to_another_version(server: Any, tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "m.llmecho").touch()
    running = server({"m": str(tmp_path / "m")}, poll_s=0.1)
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key="none", max_retries=0) as client:
        first = client.responses.create(model="m", input="say:a")
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "m.llmecho").touch()
        (tmp_path / "new").rename(tmp_path / "m" / "2")
        deadline = time.monotonic() + 30
        while True:
            try:
                second = client.responses.create(model="m:2", input="say:b", previous_response_id=first.id)
                break
            except (openai.NotFoundError, openai.InternalServerError):  # it is loading
                assert time.monotonic() < deadline
        assert second.output_text == "b" and client.responses.retrieve(first.id).output_text == "a"


def test_a_stop_is_told_to_who_reads_a_response_in_the_background(server: Any, tmp_path: Path) -> None:
    path = tmp_path / "slow.llmecho"
    path.touch()
    running = server({"slow": {"path": str(path), "options": {"delay_s": 0.05}}}, grace_s=20.0)
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key="none", max_retries=0) as client:
        stream = client.responses.create(model="slow", input="say:" + "x" * 1000, background=True, stream=True)
        began = time.monotonic()
        with pytest.raises(openai.APIError, match="stopping"):
            for event in stream:
                if event.type == "response.in_progress":
                    running.process.terminate()
        assert running.process.wait(20) == 0 and time.monotonic() - began < 15
