"""Language models behind a router: whose a request is by its body, streams, the list of models, tokens of tenants."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from router_harness import Answer, Replica, Request, Rig, Script, endpoint, post, replicas, rig, says, silent, until

from penstock.fleet.router.gain import Gain
from penstock.fleet.router.http_options import HttpOptions
from penstock.fleet.routes import Arm, Endpoint, Tenant
from penstock.fleet.spec import Match, Requests, Sticky

CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.timeout(60)


def chat(model: object = "chat", text: str = "hello", *headers: str, path: str = CHAT, **more: object) -> bytes:
    body = {"messages": [{"role": "user", "content": text}], **({} if model is None else {"model": model}), **more}
    return post(orjson.dumps(body), *headers, path=path)


def lists(*ids: str, answer: Script | None = None) -> Script:
    """A replica that says which models it has, and answers everything else as `answer`."""
    models = orjson.dumps({"object": "list", "data": [{"id": id, "object": "model"} for id in ids]})
    named, other = says(models), answer or says()

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        await (named if request.line.startswith("GET /v1/models ") else other)(request, writer)

    return script


def tenant(name: str, **limits: object) -> Tenant:
    return Tenant(name, hashlib.sha256(name.encode()).hexdigest(), **limits)  # type: ignore[arg-type]


def error(answer: Answer) -> dict[str, Any]:
    found = json.loads(answer.body)["error"]
    assert isinstance(found, dict)
    return found


async def served(asked: Rig, data: bytes) -> int:
    return (await asked.ask(data)).status


async def test_the_body_says_whose_a_request_is() -> None:
    async with replicas(Replica(lists("chat")), Replica(lists("code"))) as (one, other), rig() as asked:
        asked.follow(endpoint(one, name="chat"), endpoint(other, name="code"))
        for path in (
            CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize", "/rerank", "/v1/score"
        ):  # fmt: skip
            before = len(other.seen)
            assert await served(asked, chat("code", path=path)) == 200
            assert await served(asked, chat("code:2", path=path)) == 200
            assert len(other.seen) == before + 2 and not one.seen
        assert await served(asked, chat(None, consumer_group="chat", text="x", path="/generate")) == 200
        assert [request.line for request in one.seen] == ["POST /generate HTTP/1.1"]
        assert json.loads(other.seen[-1].body)["model"] == "code:2", "the body goes on as it came"


async def test_the_header_names_the_deployment_of_what_is_not_read() -> None:
    async with replicas(Replica(says())) as (one,), rig(HttpOptions(own_body_bytes=100_000)) as asked:
        asked.follow(endpoint(one, name="chat"), endpoint(name="code", waking=True))
        large = "x" * 250_000
        refused = await asked.ask(chat("chat", large))
        assert refused.status == 413 and error(refused)["code"] == "request_too_large"
        assert await served(asked, chat("chat", large, "Penstock-Endpoint: chat")) == 200


@pytest.mark.parametrize(
    ("body", "status", "parameter", "code"),
    [
        (b'{"model":"chad","messages":[]}', 404, "model", "model_not_found"),
        (b'{"messages":[]}', 400, "model", None), (b'{"model":3}', 400, "model", None), (b"{", 400, None, None),
        (b'["model"]', 400, None, None), (b"", 400, None, None),
    ],
)  # fmt: skip
async def test_what_is_nobodys_is_told_in_openais_shape(
    body: bytes, status: int, parameter: str | None, code: str | None
) -> None:
    async with replicas(Replica(lists("chat"))) as (one,), rig() as asked:
        asked.follow(endpoint(one, name="chat"), endpoint(name="code"))
        answer = await asked.ask(post(body, path=CHAT))
        assert answer.status == status
        found = error(answer)
        assert set(found) == {"message", "type", "param", "code"}
        assert (found["param"], found["code"]) == (parameter, code)
        if status == 404:
            assert "did you mean 'chat'" in found["message"]
        assert not [seen for seen in one.seen if seen.line.startswith("POST")]
        again = await asked.ask(post(body, path="/v1/messages"))
        assert json.loads(again.body)["type"] == "error" and "message" in json.loads(again.body)["error"]


@pytest.mark.parametrize(
    ("request_line", "body"),
    [
        ("GET /v1/responses/resp_1", b""), ("DELETE /v1/responses/resp_1", b""),
        ("POST /v1/responses/resp_1/cancel", b"{}"), ("GET /v1/files?purpose=batch", b""),
        ("POST /v1/files", b"x" * 300_000), ("GET /v1/files/file-1/content", b""),
        ("POST /v1/batches", b'{"model":"chat"}'), ("GET /v1/batches/b%2F1", b""), ("POST /v1/messages/batches", b"{}"),
    ],
)  # fmt: skip
async def test_what_one_server_keeps_is_refused_in_the_shape_of_its_clients(request_line: str, body: bytes) -> None:
    head = f"{request_line} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n"
    async with replicas(Replica(lists("chat"))) as (one,), rig() as asked:
        asked.follow(endpoint(one, name="chat"))
        answer = await asked.ask(f"{head}\r\n".encode() + body)
        found = error(answer)
        assert answer.status == 501 and "a single server's" in found["message"] and "--state" in found["message"]
        if "/v1/messages" not in request_line:
            assert found["type"] == "server_error" and found["code"] == "not_routed" and found["param"] is None
        assert not one.seen
        asked.follow(endpoint(one, name="chat"), tenants=(tenant("acme"),))
        stranger = await asked.ask(f"{head}\r\n".encode() + body)
        assert stranger.status == 401
        # Who says whose they are has them passed on.
        asked.follow(endpoint(one, name="chat", matches=(Match(path_prefix="/v1"),)))
        assert await served(asked, f"{head}\r\n".encode() + body) == 200


@pytest.mark.parametrize("header", [(), ("Penstock-Endpoint: chat",)])
async def test_an_answer_in_the_background_that_nobody_could_fetch_is_refused(header: tuple[str, ...]) -> None:
    async with replicas(Replica(lists("chat"))) as (one,), rig() as asked:
        asked.follow(endpoint(one, name="chat"))
        path = "/v1/responses"
        answer = await asked.ask(chat("chat", "hi", *header, path=path, background=True))
        found = error(answer)
        assert answer.status == 501 and found["code"] == "not_routed"
        assert "`background`" in found["message"] and "a single server's" in found["message"] and not one.seen
        assert await served(asked, chat("chat", "hi", *header, path=path, background=False)) == 200
        assert await served(asked, chat("chat", "hi", *header, background=True)) == 200, "no parameter of chat's"
        # Who says whose they are can fetch it.
        asked.follow(endpoint(one, name="chat", matches=(Match(path_prefix="/v1"),)))
        assert await served(asked, chat("chat", "hi", *header, path=path, background=True)) == 200


@pytest.mark.parametrize("depth", [260, 1000])
async def test_a_deeply_nested_body_goes_on_and_hurts_nobody_else(depth: int) -> None:
    """Its replica says what is wrong with it."""
    refuses = says(b"{}", "400 Bad Request")
    async with replicas(Replica(refuses), Replica(refuses, id="r2")) as two, rig() as asked:
        asked.follow(endpoint(*two, name="chat"))
        body = b'{"model":"chat","messages":' + b"[" * depth + b"]" * depth + b"}"
        assert await served(asked, post(body, path=CHAT)) == 400
        assert await served(asked, post(body.replace(b"messages", b"tools"), path=CHAT)) == 400
        assert sum(len(one.seen) for one in two) == 2


async def test_an_adapters_name_finds_its_deployment_and_stays_where_it_was_served() -> None:
    three = [Replica(lists("chat", "polite"), id=f"r{number}") for number in range(3)]
    async with replicas(*three), rig() as asked:
        asked.follow(endpoint(*three, name="chat"), endpoint(name="code", waking=True))
        for number in range(6):
            assert await served(asked, chat("polite", f"{number}")) == 200
        assert sorted(sum(one.line.startswith("POST") for one in replica.seen) for replica in three) == [0, 0, 6]
        retrieved = await asked.ask(b"GET /v1/models/polite HTTP/1.1\r\nHost: h\r\n\r\n")
        assert json.loads(retrieved.body)["id"] == "polite"
        missing = await asked.ask(b"GET /v1/models/rude HTTP/1.1\r\nHost: h\r\n\r\n")
        assert missing.status == 404 and error(missing)["code"] == "model_not_found"


async def test_the_list_has_the_models_that_the_caller_may_use() -> None:
    async with replicas(Replica(lists("chat", "polite")), Replica(lists("code")), Replica(says(b"{}", "404 Not Found"))) as (one, other, plain), rig() as asked:  # fmt: skip
        asked.follow(
            endpoint(one, name="chat"), endpoint(other, name="code"), endpoint(plain, name="fraud"),
            tenants=(tenant("all"), tenant("some", deployments=("code", "fraud"))),
        )  # fmt: skip

        async def listed(key: str) -> list[str]:
            answer = await asked.ask(
                f"GET /v1/models HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
            )
            assert answer.status == 200 and json.loads(answer.body)["object"] == "list"
            return [model["id"] for model in json.loads(answer.body)["data"]]

        assert await listed("all") == ["chat", "polite", "code"]
        assert await listed("some") == ["code"]
        assert (await asked.ask(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")).status == 401
        assert await served(asked, chat("chat", "x", "Authorization: Bearer some")) == 403
        assert await served(asked, chat("polite", "x", "Authorization: Bearer some")) == 403
        # One that has gone to sleep is listed still.
        asked.follow(
            Endpoint("chat", (Arm(1, 1.0, ()),), 1, waking=True), endpoint(other, name="code"), tenants=(tenant("all"),)
        )
        assert await listed("all") == ["chat", "polite", "code"]


def events(*pieces: bytes, go_on: Callable[[], asyncio.Event] | None = None) -> Script:
    """A stream of these events; waits for `go_on` before the last one."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            if go_on is not None and piece is pieces[-1]:
                await writer.drain()
                await go_on().wait()
            data = b"data: " + piece + b"\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        writer.write(b"0\r\n\r\n")

    return script


async def test_a_hedge_that_answers_first_tells_nothing_of_the_replica_that_was_chosen() -> None:
    learned: list[object] = []

    class Told(Gain):
        def observe(self, *what: float) -> None:
            learned.append(what)

    dawdles, quick = Replica(silent, id="a"), Replica(events(b"one", USAGE, b"[DONE]"), id="b")
    async with replicas(dawdles, quick) as two, rig() as asked:
        requests = Requests(idempotent=True, hedge_after_s=0.03, retry_budget=1.0)
        asked.follow(endpoint(*two, name="chat", requests=requests))
        lane = asked.balancer.services["chat"].lanes[0]
        lane.gain = Told()
        hedged = 0
        for number in range(20):
            before = len(dawdles.seen)
            assert await served(asked, chat(text=f"{number}" * 2000, stream=True)) == 200
            if len(dawdles.seen) > before:
                hedged += 1
                learned.clear()
                assert await served(asked, chat(text=f"{number}" * 2000, stream=True)) == 200  # it is believed there
                assert not learned
        assert hedged
        await until(lambda: all(not one.load and not one.in_flight for one in lane.upstreams))


async def test_a_stream_passes_event_by_event() -> None:
    go_on = asyncio.Event()
    async with replicas(Replica(events(b"one", b"[DONE]", go_on=lambda: go_on))) as (one,), rig() as asked:
        asked.follow(endpoint(one, name="chat"))
        caller = await asked.caller()
        caller.send(chat(stream=True))
        async with asyncio.timeout(10):
            await caller.reader.readuntil(b"data: one\n\n")
            go_on.set()
            await caller.reader.readuntil(b"data: [DONE]\n\n")
            await caller.reader.readuntil(b"0\r\n\r\n")


async def test_a_caller_who_leaves_ends_the_stream_at_the_replica() -> None:
    """Found out by the next token: a FIN alone may only mean that the caller has nothing more to say."""
    written = 0

    async def for_ever(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"b\r\ndata: one\n\n\r\n")
            await writer.drain()
            written += 1
            await asyncio.sleep(0.02)

    async with replicas(Replica(for_ever)) as (one,), rig() as asked:
        asked.follow(endpoint(one, name="chat"))
        caller = await asked.caller()
        caller.send(chat(stream=True))
        async with asyncio.timeout(10):
            await caller.reader.readuntil(b"data: one\n\n")
        before = written
        caller.close()
        upstream = asked.balancer.services["chat"].lanes[0].upstreams[0]
        await until(lambda: not upstream.in_flight and not upstream.load, "the place was given back")
        await until(lambda: not one.open, "the connection was closed")
        assert written - before < 50


async def test_a_replica_lost_before_the_first_byte_is_another_ones_turn_and_within_the_answer_none() -> None:
    async def half(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await writer.drain()
        writer.transport.abort()

    gone, there = Replica(says(), id="gone"), Replica(says(), id="there")
    async with replicas(gone, there), rig() as asked:
        asked.follow(endpoint(gone, there, name="chat"))
        await gone.stop()
        for number in range(6):
            assert await served(asked, chat(text=f"{number}")) == 200
    async with replicas(Replica(half)) as (one,), rig() as asked:
        asked.follow(endpoint(one, name="chat"))
        answer = await asked.ask(chat(stream=True))
        assert answer.status == 200 and not answer.complete and len(one.seen) == 1


async def test_conversations_stay_where_their_beginning_is_and_sessions_where_their_key_says() -> None:
    three = [Replica(says(), id=f"r{number}") for number in range(3)]
    async with replicas(*three), rig() as asked:
        asked.follow(endpoint(*three, name="chat"))
        for turn in range(1, 6):
            assert await served(asked, chat(text="once upon a time " * 100 * turn)) == 200
        assert sorted(len(one.seen) for one in three) == [0, 0, 5]
        sticky = Requests(affinity=Sticky(name="session"))
        asked.follow(endpoint(*three, name="chat", requests=sticky))
        before = [len(one.seen) for one in three]
        for turn in range(6):
            assert await served(asked, chat("chat", f"{turn}" * 900, "Session: s1")) == 200
        assert sorted(len(one.seen) - had for one, had in zip(three, before, strict=True)) == [0, 0, 6]


async def test_a_deployment_at_zero_holds_what_comes_until_a_replica_is_there() -> None:
    woken: list[str] = []
    async with replicas(Replica(says())) as (one,), rig() as asked:
        asked.balancer.on_sleeping = lambda service: woken.append(service.endpoint.name)
        asked.follow(Endpoint("chat", (), 1, waking=True))
        caller = await asked.caller()
        caller.send(chat())
        await until(lambda: woken == ["chat"])
        asked.follow(endpoint(one, name="chat"))
        assert (await caller.answer()).status == 200


USAGE = b'{"choices":[],"usage":{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100,"prompt_tokens_details":{"cached_tokens":0}}}'  # fmt: skip


@pytest.mark.parametrize(
    ("script", "used"),
    [
        (says(USAGE), 100), (events(b'{"usage":null}', USAGE, b"[DONE]"), 100),
        (events(b'{"delta":"\\"usage\\":{\\"prompt_tokens\\":9}"}', b"x", b"[DONE]"), 3 + 17),
        # A slow reader gets tokens joined: 1,200 bytes of text are some 300 tokens, in two events.
        (events(b'{"choices":[{"delta":{"content":"%b"}}]}' % (b"word " * 240), b"[DONE]"), 300 + 17),
        (says(b'{"text":"data: data: data:%b"}' % (b" " * 176)), 50 + 17), (says(b"{}", "400 Bad Request"), 0),
    ],
)  # fmt: skip
async def test_what_an_answer_took_is_counted_and_what_was_reserved_goes_back(script: Script, used: int) -> None:
    async with replicas(Replica(script)) as (one,), rig() as asked:
        limited = tenant("acme", tokens_per_day=1000, tokens_per_minute=500)
        asked.follow(endpoint(one, name="chat"), tenants=(limited,))
        await asked.ask(chat("chat", "hi", "Authorization: Bearer acme", max_tokens=100))
        account = asked.hooks.tenants._accounts["acme"].tokens_of_models
        await until(lambda: not account.reserved)
        assert account.used == pytest.approx(used, abs=6)
        assert account.left == pytest.approx(500 - used, abs=8)
        assert asked.hooks.tenants.take_tokens() == ({"acme": int(account.used)} if used else {})
        assert asked.hooks.tenants.take_tokens() == {}


async def test_who_has_used_up_its_tokens_is_told_when_to_come_again() -> None:
    async with replicas(Replica(says(USAGE))) as (one,), rig() as asked:
        asked.follow(
            endpoint(one, name="chat"),
            tenants=(tenant("fast", tokens_per_minute=150), tenant("daily", tokens_per_day=150)),
        )

        async def ask(key: str) -> Answer:
            return await asked.ask(chat("chat", "hi", f"Authorization: Bearer {key}", max_tokens=60))

        for key, least_s, most_s in (("fast", 1, 60), ("daily", 1, 86400)):
            statuses = [(await ask(key)).status for _ in range(2)]
            refused = await ask(key)
            assert statuses[0] == 200 and refused.status == 429
            assert least_s <= int(refused.headers["retry-after"]) <= most_s
            assert error(refused)["code"] == "rate_limit_exceeded" and error(refused)["type"] == "rate_limit_error"
        assert len(one.seen) < 6


@pytest.mark.parametrize(("said", "connections"), [("timeout=1", 3), ("timeout=5, max=100", 1), ("max=100", 1)])
async def test_a_connection_is_given_up_before_its_replica_does(said: str, connections: int) -> None:
    """As servers of other makers have them: llama.cpp's keeps idle connections for 5 s."""
    async with replicas(Replica(says(headers=f"Keep-Alive: {said}\r\n"))) as (one,), rig() as asked:
        asked.follow(endpoint(one, name="chat"))
        for _ in range(3):
            assert await served(asked, chat()) == 200
        assert one.connections == connections


async def test_a_connection_whose_end_was_not_heard_yet_gets_no_request() -> None:
    """The loop reads a caller's request before it reads the end of a replica's connection."""
    async with replicas(Replica(says())) as (one,), rig() as asked:
        asked.follow(endpoint(one, name="chat"))
        assert await served(asked, chat()) == 200
        connection = asked.balancer.services["chat"].lanes[0].upstreams[0].pool[0]
        assert connection.transport is not None
        connection.transport.pause_reading()  # a loop that has not come to it
        connection.idle_since -= 1.0
        for writer in one.writers:
            writer.close()
        await until(lambda: not one.open, "the replica closed it")
        assert await served(asked, chat()) == 200


@pytest.mark.parametrize(
    ("said", "path", "least_s"), [(None, CHAT, 590), (None, "/predict/chat", 50), (60.0, CHAT, 50), (5.0, CHAT, 4)]
)
async def test_answers_of_language_models_have_longer_unless_the_deployment_says_how_long(
    said: float | None, path: str, least_s: float
) -> None:
    async with replicas(Replica(says())) as (one,), rig() as asked:
        asked.follow(endpoint(one, name="chat", requests=Requests(timeout_s=said)))
        assert await served(asked, chat(path=path)) == 200
        left_s = int(one.seen[-1].headers["penstock-timeout-ms"]) / 1e3
        assert least_s <= left_s <= least_s + 10
