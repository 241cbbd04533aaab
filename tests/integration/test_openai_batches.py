"""The official client's Files and Batches against real servers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

MINE, OTHER = "a key for these tests", "the key of somebody else"
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def running(shared_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("echo")
    path = folder / "echo.llmecho"
    path.touch()
    keys = folder / "keys"
    keys.write_text(f"{MINE}\n{OTHER}\n")
    keys.chmod(0o600)
    slow = {"path": str(path), "options": {"delay_s": 0.05, "max_running": 2}}
    return shared_server({"echo": {"path": str(path)}, "slow": slow}, api_key_file=str(keys), fronts=2)


@pytest.fixture(scope="module")
def client(running: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key=MINE, max_retries=0) as found:
        yield found


def chat(name: str, text: str, **more: Any) -> dict[str, Any]:
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], **more}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def uploaded(client: openai.OpenAI, lines: list[dict[str, Any]]) -> str:
    content = "".join(json.dumps(line) + "\n" for line in lines)
    return client.files.create(file=("requests.jsonl", content.encode()), purpose="batch").id


def begun(client: openai.OpenAI, lines: list[dict[str, Any]], endpoint: Any = "/v1/chat/completions") -> Any:
    return client.batches.create(input_file_id=uploaded(client, lines), endpoint=endpoint, completion_window="24h")


def until(client: openai.OpenAI, id: str, *statuses: str) -> Any:
    deadline = time.monotonic() + 60
    while (batch := client.batches.retrieve(id)).status not in statuses:
        assert batch.status not in ENDED and time.monotonic() < deadline, batch
        time.sleep(0.02)
    return batch


def read(client: openai.OpenAI, id: str | None) -> dict[str, Any]:
    assert id is not None
    return {line["custom_id"]: line for line in map(json.loads, client.files.content(id).text.splitlines())}


def test_each_line_is_answered_as_its_route_answers(client: openai.OpenAI) -> None:
    lines = [chat(f"r{at}", f"say:{at}é") for at in range(40)]
    lines += [chat("bad", "x", temperature=9), chat("stream", "x", stream=True), chat("nobody", "x", model="nobody")]
    batch = client.batches.create(
        input_file_id=uploaded(client, lines), endpoint="/v1/chat/completions", completion_window="24h",
        metadata={"night": "1"},
    )  # fmt: skip
    ended = until(client, batch.id, "completed")
    counts = ended.request_counts
    assert (counts.total, counts.completed, counts.failed) == (43, 40, 3) and ended.metadata == {"night": "1"}
    assert batch.created_at <= ended.in_progress_at <= ended.finalizing_at <= ended.completed_at
    good, bad = read(client, ended.output_file_id), read(client, ended.error_file_id)
    assert {
        name: line["response"]["body"]["choices"][0]["message"]["content"] for name, line in good.items()
    } == {f"r{at}": f"{at}é" for at in range(40)}  # fmt: skip
    assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in good.values())
    found = {name: (line["response"]["status_code"], line["response"]["body"]["error"]["param"])
             for name, line in bad.items()}  # fmt: skip
    assert found == {"bad": (400, "temperature"), "stream": (400, "stream"), "nobody": (404, "model")}
    output = client.files.retrieve(ended.output_file_id)
    assert output.purpose == "batch_output" and output.bytes == len(client.files.content(output.id).read())


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/embeddings", "/v1/responses"])
def test_the_other_endpoints(client: openai.OpenAI, endpoint: str) -> None:
    body = {"prompt": "say:yes"} if endpoint == "/v1/completions" else {"input": ["a", "b"]}
    if endpoint == "/v1/responses":
        body = {"input": "say:b"}
    lines = [{"custom_id": "one", "method": "POST", "url": endpoint, "body": {"model": "echo", **body}}]
    ended = until(client, begun(client, lines, endpoint).id, "completed")
    answer = read(client, ended.output_file_id)["one"]["response"]["body"]
    if endpoint == "/v1/completions":
        assert answer["choices"][0]["text"] == "yes"
    elif endpoint == "/v1/responses":
        assert answer["output"][0]["content"][0]["text"] == "b" and answer["store"] is False
    else:
        assert [one["index"] for one in answer["data"]] == [0, 1]
    assert ended.error_file_id is None
    used = answer["usage"]
    assert ended.usage.input_tokens == used.get("prompt_tokens", used.get("input_tokens"))
    assert ended.usage.output_tokens == used.get("completion_tokens", used.get("output_tokens", 0))


def test_the_files_of_a_batch_may_expire_earlier(client: openai.OpenAI) -> None:
    batch = client.batches.create(
        input_file_id=uploaded(client, [chat("a", "say:a")]), endpoint="/v1/chat/completions", completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    output = client.files.retrieve(until(client, batch.id, "completed").output_file_id)
    assert output.expires_at == output.created_at + 3600
    with pytest.raises(openai.BadRequestError, match="seconds"):
        client.batches.create(
            input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h",
            output_expires_after={"anchor": "created_at", "seconds": 1},
        )  # fmt: skip


def test_a_file_with_faults_fails_as_a_whole_and_says_where(client: openai.OpenAI) -> None:
    lines = [chat("a", "x"), chat("a", "x"), {**chat("b", "x"), "url": "/v1/completions"}, {"custom_id": "c"}]
    ended = until(client, begun(client, lines).id, "failed")
    assert [(fault.line, fault.code) for fault in ended.errors.data] == [
        (2, "duplicate_custom_id"), (3, "mismatched_url"), (4, "invalid_request"),
    ]  # fmt: skip
    assert ended.output_file_id is None and ended.request_counts.completed == 0


def test_a_cancelled_batch_keeps_what_was_answered(client: openai.OpenAI) -> None:
    lines = [chat("quick", "say:q")] + [chat(f"s{at}", "say:" + "x" * 400, model="slow") for at in range(20)]
    batch = begun(client, lines)
    deadline = time.monotonic() + 30
    while client.batches.retrieve(batch.id).request_counts.completed < 1:
        assert time.monotonic() < deadline
    with pytest.raises(openai.ConflictError):
        client.files.delete(batch.input_file_id)
    client.batches.cancel(batch.id)
    ended = until(client, batch.id, "cancelled")
    assert "quick" in read(client, ended.output_file_id) and ended.cancelling_at <= ended.cancelled_at
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)
    assert client.files.delete(batch.input_file_id).deleted


def test_who_waits_goes_before_a_batch(client: openai.OpenAI) -> None:
    """The engine runs two at a time; a line takes 0.5 s, and twenty wait."""
    batch = begun(client, [chat(f"s{at}", "say:" + "x" * 10, model="slow") for at in range(20)])
    deadline = time.monotonic() + 30
    while client.batches.retrieve(batch.id).request_counts.completed < 2:
        assert time.monotonic() < deadline
    said = client.chat.completions.create(model="slow", messages=[{"role": "user", "content": "say:me"}])
    assert said.choices[0].message.content == "me"
    assert client.batches.retrieve(batch.id).request_counts.completed < 16, "it waited for the batch"
    until(client, batch.id, "completed")


def test_another_key_finds_nothing(running: Any, client: openai.OpenAI) -> None:
    ended = until(client, begun(client, [chat("a", "say:a")]).id, "completed")
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key=OTHER, max_retries=0) as other:
        for call in (
            lambda: other.files.retrieve(ended.input_file_id),
            lambda: other.files.content(ended.output_file_id),
            lambda: other.files.delete(ended.input_file_id),
            lambda: other.batches.retrieve(ended.id),
            lambda: other.batches.cancel(ended.id),
        ):
            with pytest.raises(openai.NotFoundError, match="No such"):
                call()
        with pytest.raises(openai.BadRequestError, match="No such File"):
            other.batches.create(input_file_id=ended.input_file_id, endpoint="/v1/completions", completion_window="24h")
        assert list(other.files.list()) == [] and list(other.batches.list()) == []


def test_lists_come_in_pages(client: openai.OpenAI) -> None:
    ids = [begun(client, [chat("a", "say:a")]).id for _ in range(3)]
    assert [batch.id for batch in client.batches.list(limit=2)][:3] == ids[::-1]
    files = [file.id for file in client.files.list(purpose="batch")]
    assert files and [file.id for file in client.files.list(purpose="batch", order="asc", limit=2)] == files[::-1]


def test_what_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=b"x", purpose="assistants")
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        client.batches.create(input_file_id="x", endpoint="/v1/moderations", completion_window="24h")
    with pytest.raises(openai.APIStatusError, match="bytes") as refused:
        client.files.create(file=("big.jsonl", b"x" * ((64 << 20) + 1)), purpose="batch")
    assert refused.value.status_code == 413


def test_a_stop_ends_the_work_at_once(server: Any, tmp_path: Path) -> None:
    path = tmp_path / "echo.llmecho"
    path.touch()
    running = server({"slow": {"path": str(path), "options": {"delay_s": 0.5}}}, grace_s=20.0)
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key="none") as client:
        batch = begun(client, [chat("a", "say:" + "x" * 200, model="slow")])
        until(client, batch.id, "in_progress")
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began < 15
