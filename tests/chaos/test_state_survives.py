"""Files, batches and responses outlive the server that keeps them in a folder: real kills, the official client."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from libc_faults import Faults
from running_server import start as start_server

ENDED = ("completed", "failed", "expired", "cancelled")
Start = Callable[..., tuple[Any, openai.OpenAI]]


@pytest.fixture
def start(server: Any, tmp_path: Path) -> Start:
    """Starts a server on the one folder; its echo engine takes 10 ms for a token."""
    path = tmp_path / "echo.llmecho"
    path.touch()

    def begin(**more: Any) -> tuple[Any, openai.OpenAI]:
        model = {"path": str(path), "options": {"delay_s": 0.01, "max_running": 4}}
        running = server({"echo": model}, **{"state": str(tmp_path / "state"), **more})
        return running, openai.OpenAI(base_url=f"{running.http}/v1", api_key="none", max_retries=0)

    return begin


def kill(running: Any) -> None:
    running.process.kill()
    running.process.wait(10)


def begun(client: openai.OpenAI, count: int, **more: Any) -> Any:
    lines = [
        {"custom_id": f"r{at}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"messages": [{"role": "user", "content": f"say:{at:06}"}],
                  **({"temperature": 9} if at % 10 == 3 else {})}}
        for at in range(count)
    ]  # fmt: skip
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}, **more
    )


def until(client: openai.OpenAI, id: str, enough: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 60
    while not enough(batch := client.batches.retrieve(id)):
        assert time.monotonic() < deadline, batch
        time.sleep(0.01)
    return batch


def read(client: openai.OpenAI, id: str) -> list[Any]:
    return [json.loads(line) for line in client.files.content(id).text.splitlines()]


def check_whole(client: openai.OpenAI, batch: Any, count: int) -> None:
    """Each line has one answer, its own; the counts are true."""
    good, bad = read(client, batch.output_file_id), read(client, batch.error_file_id)
    found = [line["custom_id"] for line in good + bad]
    assert len(found) == count and set(found) == {f"r{at}" for at in range(count)}
    for line in good:
        said = line["response"]["body"]["choices"][0]["message"]["content"]
        assert line["custom_id"] == f"r{int(said)}"
    assert {line["custom_id"] for line in bad} == {f"r{at}" for at in range(count) if at % 10 == 3}
    used = [line["response"]["body"]["usage"] for line in good]
    assert batch.usage.total_tokens == sum(one["total_tokens"] for one in used)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (count, len(good), len(bad))


def test_a_batch_goes_on_after_a_kill_and_each_line_has_one_answer(start: Start) -> None:
    first, client = start(fronts=2)
    batch = begun(client, 60)
    before = until(client, batch.id, lambda batch: batch.request_counts.completed >= 10)
    assert before.status == "in_progress"
    kill(first)
    second, client = start()
    after = client.batches.retrieve(batch.id)
    assert after.metadata == {"a": "b"} and after.status == "in_progress"
    known = until(client, batch.id, lambda batch: batch.request_counts.total > 0).request_counts
    assert known.completed >= before.request_counts.completed, "answers were thrown away"
    ended = until(client, batch.id, lambda batch: batch.status in ENDED)
    assert ended.status == "completed" and ended.created_at == batch.created_at
    check_whole(client, ended, 60)
    kill(second)
    _, client = start()
    assert client.batches.retrieve(batch.id) == ended and [one.id for one in client.batches.list()] == [batch.id]
    check_whole(client, ended, 60)
    assert {file.id for file in client.files.list()} == {
        ended.input_file_id, ended.output_file_id, ended.error_file_id,
    }  # fmt: skip
    client.files.delete(ended.output_file_id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(ended.output_file_id)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_any_moment_lose_and_double_nothing(start: Start, seed: int) -> None:
    draw = random.Random(seed)
    running, client = start()
    batch = begun(client, 200)
    for _ in range(8):
        time.sleep(draw.uniform(0, 0.8))
        kill(running)
        running, client = start()
    ended = until(client, batch.id, lambda batch: batch.status in ENDED)
    assert ended.status == "completed"
    check_whole(client, ended, 200)
    assert len(list(client.files.list())) == 3


@pytest.mark.chaos
def test_a_stop_leaves_a_batch_to_the_next_start_and_a_cancelled_one_ends(start: Start) -> None:
    first, client = start()
    going, cancelled = begun(client, 60), begun(client, 60)
    until(client, going.id, lambda batch: batch.request_counts.completed >= 5)
    client.batches.cancel(cancelled.id)
    assert first.stop() == 0
    _, client = start()
    assert until(client, cancelled.id, lambda batch: batch.status in ENDED).status == "cancelled"
    ended = until(client, going.id, lambda batch: batch.status in ENDED)
    assert ended.status == "completed"
    check_whole(client, ended, 60)


def test_responses_are_there_again_and_those_in_the_background_are_made(start: Start, tmp_path: Path) -> None:
    first, client = start()
    kept = client.responses.create(input="say:one", metadata={"a": "b"})
    done = client.responses.create(input="say:done", background=True)
    while client.responses.retrieve(done.id).status != "completed":
        time.sleep(0.01)
    waiting = client.responses.create(input="say:" + "x" * 150, background=True, previous_response_id=kept.id)
    stream = client.responses.create(input="say:" + "y" * 150, background=True, stream=True)
    streamed = next(event for event in stream if event.type == "response.created").response.id
    assert next(event for event in stream if event.type == "response.output_text.delta").delta
    kill(first)
    for place in (tmp_path / "state").rglob("*"):
        assert stat.S_IMODE(place.stat().st_mode) == (0o700 if place.is_dir() else 0o600), place
    _, client = start()
    assert client.responses.retrieve(kept.id).to_dict() == kept.to_dict()
    assert client.responses.retrieve(done.id).output_text == "done"
    deadline = time.monotonic() + 30
    while (made := client.responses.retrieve(waiting.id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
    assert made.status == "completed" and made.output_text == "x" * 150 and made.previous_response_id == kept.id
    failed = client.responses.retrieve(streamed)
    assert failed.status == "failed" and "stream" in failed.error.message
    assert client.responses.create(input="say:two", previous_response_id=waiting.id).output_text == "two"
    client.responses.delete(kept.id)
    assert not (tmp_path / "state" / "responses" / kept.id).exists()


def test_two_servers_do_not_share_a_folder_and_a_file_is_no_folder(start: Start, tmp_path: Path) -> None:
    start()
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name, why in (
        ("state", "another server keeps its state"), ("file", "file: cannot be used"),
        ("open", "writable for nobody else"),
    ):  # fmt: skip
        folder = tmp_path / f"refused_{name}"
        folder.mkdir()
        with pytest.raises(RuntimeError, match=why):
            start_server(folder, {"echo": str(tmp_path / "echo.llmecho")}, state=str(tmp_path / name))


def test_damage_is_told_and_never_answered_from(start: Start, tmp_path: Path) -> None:
    first, client = start()
    file = client.files.create(file=("a.jsonl", b'{"custom_id": "right"}\n'), purpose="batch")
    kept, head = client.responses.create(input="say:right"), client.responses.create(input="say:other")
    kill(first)
    state = tmp_path / "state"
    for place, old, new in (
        (state / "files" / file.id, b"right", b"wrong"), (state / "responses" / kept.id, b"right", b"wrong"),
        (state / "responses" / head.id, b"completed", b"complete!"),
    ):  # fmt: skip
        content = place.read_bytes()
        assert old in content
        place.write_bytes(content.replace(old, new))
    _, client = start()
    for call in (
        lambda: client.files.content(file.id), lambda: client.responses.retrieve(kept.id),
        lambda: client.responses.retrieve(head.id),
    ):  # fmt: skip
        with pytest.raises(openai.InternalServerError, match="damaged") as refused:
            call()
        assert refused.value.response.headers["x-should-retry"] == "false"
    assert client.responses.create(input="say:on").output_text == "on"


def test_a_full_disk_is_told_and_what_was_promised_is_kept(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(tmp_path, tmp_path / "state", monkeypatch)
    _, client = start()
    batch = begun(client, 40)
    before = client.responses.create(input="say:before")
    until(client, batch.id, lambda batch: batch.request_counts.completed >= 3)
    faults.set(error=errno.ENOSPC)
    with pytest.raises(openai.InternalServerError, match="no room") as refused:
        client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
    assert refused.value.status_code == 503
    answer = client.responses.create(input="say:a")
    assert answer.output_text == "a" and answer.to_dict()["store"] is False
    until(client, batch.id, lambda batch: batch.errors is not None and "no room" in batch.errors.data[0].message)
    faults.set()
    failed = until(client, batch.id, lambda batch: batch.status in ENDED)
    assert failed.status == "failed"
    lines = client.files.content(failed.output_file_id).content.splitlines()
    assert len(lines) == failed.request_counts.completed >= 3
    assert client.responses.retrieve(before.id).output_text == "before"
    assert client.responses.create(input="say:b").to_dict()["store"] is True
    again = begun(client, 10)
    check_whole(client, until(client, again.id, lambda batch: batch.status in ENDED), 10)
    assert os.listdir(tmp_path / "state")
