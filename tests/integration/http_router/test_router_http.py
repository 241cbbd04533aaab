"""The router's HTTP front between raw callers and scripted replicas: what goes through, and how."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from router_harness import (
    Replica,
    Request,
    chunked,
    echo,
    endpoint,
    post,
    replicas,
    rig,
    says,
    silent,
    until,
)

from penstock.fleet.router.recorder import Recorder
from penstock.fleet.routes import Arm, Endpoint
from penstock.fleet.spec import Requests
from penstock.fleet.store.decisions import Decisions


async def test_a_request_and_its_answer_go_through() -> None:
    async with replicas(Replica(says(b"[1]", headers="X-Model: a\r\n"))) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        answer = await router.ask(
            post(
                b"\x00\xff{}", "X-Own: v\xe4lue", "Connection: X-Hop", "X-Hop: 1", "TE: trailers", "Keep-Alive: 5",
                "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", path="/predict/fraud?x=%20y&z",
            )
        )  # fmt: skip
        assert (answer.status, answer.body) == (200, b"[1]")
        assert answer.headers["penstock-revision"] == "1" and answer.headers["x-model"] == "a"
        (request,) = replica.seen
        assert request.line == "POST /predict/fraud?x=%20y&z HTTP/1.1"
        assert request.body == b"\x00\xff{}"
        assert request.headers["x-own"] == "v\xe4lue" and request.headers["host"] == "here"
        assert request.headers["traceparent"].endswith("b7ad6b7169203331-01")
        assert not {"connection", "x-hop", "te", "keep-alive"} & set(request.headers)
        assert 59_000 < int(request.headers["penstock-timeout-ms"]) <= 60_000


async def test_connections_are_kept_on_both_sides() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        for number in range(20):
            caller.send(post(b"%d" % number))
            assert (await caller.answer()).body == b"%d" % number
        assert replica.connections == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def slow_first(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.body == b"0":
            await asyncio.sleep(0.05)
        await echo(request, writer)

    async with replicas(Replica(slow_first)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(b"".join(post(b"%d" % number) for number in range(50)))
        assert [(await caller.answer()).body for _ in range(50)] == [b"%d" % number for number in range(50)]


async def test_a_request_in_single_bytes_is_read() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        for data in (post(b"abc"), chunked([b"de", b"f"])):
            for place in range(len(data)):
                caller.send(data[place : place + 1])
                await asyncio.sleep(0)
        assert [(await caller.answer()).body for _ in range(2)] == [b"abc", b"def"]


async def test_a_small_chunked_body_gets_a_length_and_a_large_one_streams() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        assert (await router.ask(chunked([b"ab", b"c"]))).body == b"abc"
        assert replica.seen[0].headers["content-length"] == "3"
        pieces = [bytes([number]) * 100_000 for number in range(10)]
        answer = await router.ask(chunked(pieces))
        assert answer.body == b"".join(pieces)
        assert replica.seen[1].headers["transfer-encoding"] == "chunked"
        assert (await router.ask(post(b"x" * 1_000_000))).body == b"x" * 1_000_000
        assert replica.seen[2].headers["content-length"] == "1000000"


async def test_an_answer_in_chunks_arrives_piece_by_piece() -> None:
    more = asyncio.Event()

    async def stream(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"9;ext=1\r\ndata: 1\n\n\r\n"
        )
        await more.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\nTrailer: x\r\n\r\n")

    async with replicas(Replica(stream)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post())
        async with asyncio.timeout(5):
            first = await caller.reader.readuntil(b"data: 1\n\n\r\n")
        assert b"penstock-revision: 1" in first and b"text/event-stream" in first
        more.set()
        async with asyncio.timeout(5):
            assert await caller.reader.readuntil(b"0\r\n\r\n") == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"
        caller.send(post())
        assert (await caller.answer()).body == b"data: 1\n\ndata: 2\n\n"
        assert replica.connections == 1, "the connection was used again"


async def test_an_answer_until_the_connections_end_gets_chunks() -> None:
    async def until_end(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await writer.drain()
        writer.close()

    async with replicas(Replica(until_end)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        for _ in range(2):
            caller.send(post())
            answer = await caller.answer()
            assert answer.body == b"abc" and answer.complete
        assert replica.connections == 2


async def test_heads_and_answers_without_bodies() -> None:
    async with replicas(Replica(says(b"", "304 Not Modified"))) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post())
        assert (await caller.answer()).status == 304

        async def long(request: Request, writer: asyncio.StreamWriter) -> None:
            body = b"" if request.line.startswith("HEAD") else b"x" * 100
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + body)

        replica.script = long
        caller.send(b"HEAD /v2/models/fraud HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await caller.answer(head_only=True)
        assert head.headers["content-length"] == "100"
        caller.send(post())
        assert len((await caller.answer()).body) == 100


async def test_callers_of_http_1_0() -> None:
    async def stream(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        old = b"POST /v2/models/fraud/infer HTTP/1.0\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\nx"
        caller.send(old)
        answer = await caller.answer()
        assert answer.body == b"x" and answer.headers["connection"] == "keep-alive"
        replica.script = stream
        caller.send(old)
        answer = await caller.answer()
        assert answer.body == b"abc" and answer.headers["connection"] == "close"


async def test_who_waits_with_the_body_is_told_to_go_on() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        head, body = post(b"abc", "Expect: 100-continue").split(b"\r\n\r\n")
        caller.send(head + b"\r\n\r\n")
        async with asyncio.timeout(5):
            assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.send(body)
        assert (await caller.answer()).body == b"abc"
        assert "expect" not in replica.seen[0].headers
        refused = await router.ask(post(b"abc", "Expect: 100-continue", path="/v2/models/other/infer").split(b"abc")[0])
        assert refused.status == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/other/infer", 404),
        ("/v2/repository/models/fraud/load", 404),
        ("/", 404),
        ("/v2/models/fraud/../x", 404),
    ],
)
async def test_what_is_nobodys_is_answered_here(path: str, status: int) -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post(b"abc", path=path) + post(b"next"))
        answer = await caller.answer()
        assert answer.status == status and answer.headers["penstock-error"] == "NotFound"
        assert (await caller.answer()).body == b"next", "its body was read, and the connection goes on"
        assert len(replica.seen) == 1


async def test_before_the_first_table_callers_are_told_to_come_again() -> None:
    async with rig() as router:
        answer = await router.ask(post())
        assert answer.status == 503 and answer.headers["penstock-error"] == "NotReady"
        assert answer.headers["retry-after"] == "1"
        ready = await router.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n")
        assert ready.status == 503


async def test_weights_are_kept_and_named() -> None:
    async with replicas(Replica(says(b"one"), "a"), Replica(says(b"two"), "b")) as (one, two), rig() as router:
        router.follow(Endpoint("fraud", (Arm(3, 0.8, (one.upstream,)), Arm(4, 0.2, (two.upstream,))), 3))
        caller = await router.caller()
        counts = {"3": 0, "4": 0}
        for _ in range(1000):
            caller.send(post())
            answer = await caller.answer()
            assert answer.body == {"3": b"one", "4": b"two"}[answer.headers["penstock-revision"]]
            counts[answer.headers["penstock-revision"]] += 1
        assert 140 < counts["4"] < 260


@pytest.mark.alone
async def test_the_deadline_is_answered_and_the_replica_told() -> None:
    async with replicas(Replica(silent)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        began = asyncio.get_running_loop().time()
        answer = await router.ask(post(b"{}", "Penstock-Timeout-Ms: 100"))
        took = asyncio.get_running_loop().time() - began
        assert answer.status == 504 and answer.headers["penstock-error"] == "DeadlineExceeded"
        assert 0.1 <= took < 1.0
        assert int(replica.seen[0].headers["penstock-timeout-ms"]) <= 100
        await until(lambda: replica.open == 0, "the connection to the replica is closed")


async def test_the_deployments_own_deadline_holds_for_callers_without_one() -> None:
    async with replicas(Replica(silent)) as (replica,), rig() as router:
        router.follow(endpoint(replica, requests=Requests(timeout_s=0.05)))
        assert (await router.ask(post())).status == 504


async def test_a_stream_past_its_deadline_is_cut() -> None:
    async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await request.reader.read()

    async with replicas(Replica(endless)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        answer = await router.ask(post(b"{}", "Penstock-Timeout-Ms: 100"))
        assert answer.status == 200 and not answer.complete


async def test_metrics_and_probes() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica), Endpoint("sleeps", (), 1, waking=True))
        await router.ask(post())
        text = (await router.ask(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")).body.decode()
        assert 'penstock_router_requests_total{deployment="fraud",revision="1",status="2xx"} 1\n' in text
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/sleeps/ready"):
            assert (await router.ask(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())).status == 200
        assert json.loads((await router.ask(b"GET /v2/models HTTP/1.1\r\nHost: a\r\n\r\n")).body) == {
            "models": ["fraud", "sleeps"]
        }
        assert json.loads((await router.ask(post(path="/v2/repository/index"))).body) == [
            {"name": "fraud", "version": "", "state": "READY", "reason": ""},
            {"name": "sleeps", "version": "", "state": "READY", "reason": ""},
        ]
        assert json.loads((await router.ask(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")).body)["version"]
        assert (await router.ask(post(path="/metrics"))).status == 501


async def test_every_metric_is_in_the_documents_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    told = set(re.findall(r"^\| `(penstock_router_\w+)`", page, re.MULTILINE))
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        router.hooks.recorder = Recorder(lambda: Decisions("sqlite://"), "test")
        text = (await router.ask(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")).body.decode()
    assert set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) == told
