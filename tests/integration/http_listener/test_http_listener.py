"""The HTTP listener over real sockets: requests and answers, order, errors, headers, keys, drain."""

from __future__ import annotations

import asyncio
import re
import socket

import orjson
import pytest
from http_harness import Client, get, infer, post, serving, stream, until

from penstock.core.addresses import is_loopback
from penstock.core.errors import InvalidInput
from penstock.runtime.listeners.http import HttpListener


async def test_an_inference_is_answered_and_the_connection_kept() -> None:
    async with serving() as it:
        client = await it.connect()
        for number in range(3):
            answer = await client.ask(infer([number, 2], id=number))
            assert (answer.status, answer.json) == (200, {"id": str(number), "y": [number * 2, 4]})
            assert answer.headers["content-type"] == "application/json"
            assert "connection" not in answer.headers
            assert answer.headers["server"] == "penstock"
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", answer.headers["date"])
        assert it.listener.counters.responses[2] == 3
        assert it.listener.counters.connections_open == 1
        await client.close()
        await until(lambda: it.listener.counters.connections_open == 0)


async def test_the_protocol_sees_the_decoded_path_the_query_and_lower_case_headers() -> None:
    async with serving() as it:
        client = await it.connect()
        answer = await client.ask(post("/echo/a%20b%2Fc?q=1&r=%20", b"hello", "X-Thing: One", "x-thing: two"))
        seen = answer.json
        assert seen["path"] == "/echo/a b/c"
        assert seen["match"] == {"name": "a b/c"}
        assert seen["query"] == "q=1&r=%20"
        assert seen["headers"]["x-thing"] == "One, two"
        assert seen["body"] == "hello"


async def test_pipelined_answers_keep_the_order_of_their_requests() -> None:
    async with serving() as it:
        client = await it.connect()
        it.door.gate.clear()
        await client.send(infer([1], id="slow"))
        await until(lambda: "slow" in it.door.waiting)
        await client.send(get("/health") + get("/nowhere") + infer([3], id="x", model="broken") + infer([4], id="last"))
        await until(lambda: len(it.door.requests) == 3)
        await until(lambda: it.listener.counters.responses[4] == 1)  # the later 404 is ready, and must wait
        it.door.gate.set()
        answers = [await client.answer() for _ in range(5)]
        assert [answer.status for answer in answers] == [200, 200, 404, 500, 200]
        assert answers[0].json["id"] == "slow"
        assert answers[4].json["id"] == "last"


async def test_pipelining_beyond_the_limit_waits_and_loses_nothing() -> None:
    async with serving(max_pipelined=4) as it:
        client = await it.connect()
        it.door.gate.clear()
        sending = asyncio.ensure_future(client.send(b"".join(infer([n], id=n) for n in range(500))))
        await until(lambda: len(it.door.waiting) == 4)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(it.door.requests) == 4
        it.door.gate.set()
        assert [(await client.answer()).json["id"] for _ in range(500)] == [str(n) for n in range(500)]
        await sending


async def test_five_thousand_pipelined_requests_answered_at_once_do_not_exhaust_the_stack() -> None:
    async with serving() as it:
        client = await it.connect()
        sending = asyncio.ensure_future(client.send(b"".join(get(f"/nowhere/{n}") for n in range(5000))))
        for number in range(5000):
            assert f"/nowhere/{number}" in (await client.answer()).json["error"]
        await sending


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (infer([1], model="unknown"), 404),
        (post("/models/double/infer", b"{"), 400),
        (infer([1], model="broken"), 500),
        (infer([1], model="full"), 503),
        (infer([1], model="defect"), 500),
        (get("/defect"), 500),
        (get("/nothing"), 404),
        (get("/models/double/infer"), 405),
        (get("/models/"), 404),
    ],
)
async def test_errors_are_answered_and_the_connection_goes_on(request_bytes: bytes, status: int) -> None:
    async with serving() as it:
        client = await it.connect()
        answer = await client.ask(request_bytes)
        assert answer.status == status
        assert "error" in answer.json
        assert "KeyError" not in answer.json["error"]
        assert (await client.ask(infer([1]))).status == 200


async def test_defects_are_logged_once_with_their_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as it:
        client = await it.connect()
        await client.ask(get("/defect"))
        records = [record for record in caplog.records if record.name == "penstock.http"]
        assert len(records) == 1
        assert records[0].exc_info is not None
        assert "a defect of the handler" in str(records[0].exc_info[1])
        assert records[0].__dict__["path"] == "/defect"


async def test_overload_says_when_to_come_back() -> None:
    async with serving() as it:
        client = await it.connect()
        answer = await client.ask(infer([1], model="full"))
        assert (answer.status, answer.headers["retry-after"]) == (503, "3")


async def test_a_known_path_with_the_wrong_method_names_the_right_ones() -> None:
    async with serving() as it:
        client = await it.connect()
        answer = await client.ask(post("/health"))
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        answer = await client.ask(get("/upload", method="OPTIONS"))
        assert (answer.status, answer.headers["allow"]) == (204, "POST, OPTIONS")
        assert "content-length" not in answer.headers
        answer = await client.ask(get("*", method="OPTIONS"))
        assert answer.status == 204
        assert (await client.ask(get("/health"))).status == 200


async def test_head_has_the_length_and_no_body() -> None:
    async with serving() as it:
        client = await it.connect()
        await client.send(get("/models", method="HEAD") + get("/zeros/100000", method="HEAD") + get("/health"))
        assert int((await client.answer(head=True)).headers["content-length"]) == len(orjson.dumps(it.door.models()))
        assert (await client.answer(head=True)).headers["content-length"] == "100000"
        assert (await client.answer()).status == 200


async def test_http_1_0_closes_unless_asked_to_stay() -> None:
    async with serving() as it:
        client = await it.connect()
        answer = await client.ask(get("/health", "Connection: keep-alive", version="1.0"))
        assert answer.headers["connection"] == "keep-alive"
        answer = await client.ask(get("/health", version="1.0"))
        assert answer.headers["connection"] == "close"
        assert await client.closed() == b""


async def test_connection_close_is_honoured_and_what_follows_is_not_answered() -> None:
    async with serving() as it:
        client = await it.connect()
        answer = await client.ask(infer([1], "a", "double", "Connection: close"))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.closed() == b""


async def test_absolute_targets_are_paths() -> None:
    async with serving() as it:
        client = await it.connect()
        assert (await client.ask(get("http://somewhere.example/health"))).status == 200
        assert (await client.ask(get("/health#x?y"))).status == 200


async def test_an_upgrade_to_h2c_is_ignored_and_the_request_answered() -> None:
    """Java's HttpClient sends these headers with its first request on every connection, body and all."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA")
    body = b'{"x":[1,2,3]}'
    big = b'{"x":[1,2,3]' + b" " * 200_000 + b"}"
    chunked = (
        b"POST /models/double/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
        + "\r\n".join(upgrade).encode()
        + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    )
    async with serving() as it:
        client = await it.connect()
        everything = (
            post("/models/double/infer", body, *upgrade)
            + post("/models/double/infer", big, *upgrade)
            + chunked
            + get("/health", *upgrade)
            + infer([5], id="after")
        )
        sending = asyncio.ensure_future(client.send(everything))
        answers = [await client.answer() for _ in range(5)]
        await sending
        assert [answer.status for answer in answers] == [200] * 5
        assert answers[0].json["y"] == answers[1].json["y"] == answers[2].json["y"] == [2, 4, 6]
        assert answers[4].json["id"] == "after"


async def test_chunked_bodies_are_put_together_and_trailers_dropped() -> None:
    async with serving() as it:
        client = await it.connect()
        head = b"POST /echo/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = await client.ask(head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n")
        assert answer.json["body"] == "abcde"
        assert "trailer" not in answer.json["headers"]
        assert (await client.ask(head + b"0\r\n\r\n")).json["body"] == ""


async def test_expect_continue_is_answered_before_the_body() -> None:
    async with serving() as it:
        client = await it.connect()
        assert (await client.ask(post("/upload", b"", "Expect: 100-continue"))).status == 200  # no body: no interim
        request = post("/upload", b"hello", "Expect: 100-continue")
        assert (await client.ask(request[:-5])).status == 100
        assert (await client.ask(b"hello")).json[0] == 5
        assert (await client.ask(post("/upload", b"x", "Expect: payment"))).status == 417


async def test_expect_continue_waits_for_the_answers_before_it() -> None:
    async with serving() as it:
        client = await it.connect()
        it.door.gate.clear()
        await client.send(infer([1], id="first") + post("/upload", b"hello", "Expect: 100-continue")[:-5])
        await until(lambda: "first" in it.door.waiting)
        it.door.gate.set()
        assert (await client.answer()).json["id"] == "first"
        assert (await client.answer()).status == 100
        assert (await client.ask(b"hello")).json[0] == 5


async def test_expect_continue_is_refused_at_once_where_the_answer_is_known() -> None:
    async with serving(max_body_bytes=1000) as it:
        client = await it.connect()
        request = post("/nowhere", b"x" * 100, "Expect: 100-continue")
        assert (await client.ask(request[:-100])).status == 404
        assert await client.closed() == b""
        client = await it.connect()
        request = post("/upload", b"x" * 2000, "Expect: 100-continue")
        assert (await client.ask(request[:-2000])).status == 413


async def test_the_timeout_header_shortens_the_deadline() -> None:
    async with serving() as it:
        client = await it.connect()
        assert (await client.ask(infer([1], "a", "double", "penstock-timeout-ms: 1500.5"))).status == 200
        request = it.door.requests[-1]
        # From the request's first byte on, which came a moment before its last.
        assert 1.4 < request.deadline - request.timings.received <= 1.5005
        for bad in ("-1", "0", "soon", "nan", "inf", ""):
            answer = await client.ask(infer([1], "a", "double", f"penstock-timeout-ms: {bad}"))
            assert (answer.status, "penstock-timeout-ms" in answer.json["error"]) == (400, True)


async def test_timings_are_told_to_those_who_ask() -> None:
    async with serving() as it:
        client = await it.connect()
        assert "server-timing" not in (await client.ask(infer([1]))).headers
        answer = await client.ask(infer([1], "a", "double", "penstock-timing: 1"))
        names = r"queue;dur=[\d.]+, batch;dur=[\d.]+, compute;dur=[\d.]+"
        assert re.fullmatch(names, answer.headers["server-timing"])
    async with serving(timing_headers=True) as it:
        assert "server-timing" in (await (await it.connect()).ask(infer([1]))).headers


async def test_request_ids_come_back_if_they_are_decent() -> None:
    async with serving() as it:
        client = await it.connect()
        assert "x-request-id" not in (await client.ask(infer([1]))).headers
        for path in (infer([1], "a", "double", "X-Request-Id: abc-1"), get("/health", "X-Request-Id: abc-1")):
            assert (await client.ask(path)).headers["x-request-id"] == "abc-1"
        for bad in ("x" * 500, "\xe9", ""):
            answer = await client.ask(get("/health", f"X-Request-Id: {bad}"))
            assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_every_route_but_public_ones_needs_a_key() -> None:
    async with serving(api_keys=(("secret", "a"), ("other", "b"))) as it:
        tried = 0
        for route in it.protocol.routes():
            path = re.sub(r"\{\w+\}", "double", route.pattern)
            body = b'{"x":[1]}' if route.method == "POST" else b""
            for method in {route.method, "HEAD" if route.method == "GET" else route.method}:
                for headers in (
                    (), ("Authorization: Bearer wrong",), ("Authorization: Basic secret",), ("X-API-Key: secre",),
                    ("X-API-Key: ",), ("Authorization: Bearer ",), ("Authorization: Bearer secret2",),
                    ("Authorization: Bearer wrong", "X-API-Key: secret"),
                ):  # fmt: skip
                    client = await it.connect()
                    data = post(path, body, *headers).replace(b"POST", method.encode(), 1)
                    await client.send(data)
                    answer = await client.answer(head=method == "HEAD")
                    public = getattr(route, "public", False)
                    assert (answer.status == 401) is not public, (method, path, headers)
                    if not public:
                        assert answer.headers["www-authenticate"] == "Bearer"
                    await client.close()
                    tried += 1
        assert tried >= 9 * 8
        assert not it.door.requests
        client = await it.connect()
        assert (await client.ask(get("/nowhere"))).status == 401
        assert (await client.ask(get("/upload", method="OPTIONS"))).status == 401
        assert (await client.ask(get("/models/double/infer"))).status == 401
        assert (await client.ask(get("/health"))).status == 200
        for header in ("Authorization: Bearer secret", "authorization: bearer other", "X-API-Key: other"):
            assert (await client.ask(infer([1], "a", "double", header))).status == 200
            assert (await client.ask(get("/nowhere", header))).status == 404


async def test_a_key_is_asked_for_before_a_large_body_is_read() -> None:
    async with serving(api_keys=(("secret", "a"),)) as it:
        client = await it.connect()
        await client.send(
            post("/upload", b"")[:-4].replace(b"Content-Length: 0", b"Content-Length: 90000000") + b"\r\n\r\n"
        )
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")


@pytest.mark.parametrize("key", ["", " a", "a\n", "é"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    from penstock.runtime.listeners.auth import ApiKeys

    with pytest.raises(InvalidInput):
        ApiKeys([(key, "a")])


def test_only_loopback_addresses_count_as_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.evil", ""))


async def test_two_protocols_with_one_route_do_not_start() -> None:
    async with serving() as it:
        with pytest.raises(InvalidInput, match="json and json both answer POST"):
            HttpListener(it.door, [it.protocol, it.protocol])


async def test_stop_accepting_refuses_new_connections_and_keeps_the_open_ones() -> None:
    async with serving() as it:
        client = await it.connect()
        assert (await client.ask(get("/health"))).status == 200
        it.listener.stop_accepting()
        with pytest.raises(ConnectionError):
            await it.connect()
        assert (await client.ask(get("/health"))).status == 200


async def test_a_connection_that_nobody_has_accepted_yet_is_answered_when_the_port_closes() -> None:
    async with serving() as it:
        with socket.create_connection(("127.0.0.1", it.port)) as one:  # blocks the loop, which can accept nothing
            one.sendall(infer([1], id="last"))
            it.listener.stop_accepting()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", it.port))
            assert await it.listener.drain(10.0) == 0
            one.settimeout(5.0)
            answer = one.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200") and b'"last"' in answer


async def test_drain_closes_the_idle_and_answers_those_in_flight() -> None:
    async with serving() as it:
        idle, busy, untouched = [await it.connect() for _ in range(3)]
        await idle.ask(get("/health"))
        await until(lambda: it.listener.counters.connections_open == 3)
        it.door.gate.clear()
        await busy.send(infer([1], id="a") + infer([2], id="b"))
        await until(lambda: len(it.door.waiting) == 2)
        drain = asyncio.ensure_future(it.listener.drain(10.0))
        assert await idle.closed() == b""
        assert await untouched.closed() == b""
        it.door.gate.set()
        first, second = await busy.answer(), await busy.answer()
        assert (first.json["id"], "connection" in first.headers) == ("a", False)
        assert (second.json["id"], second.headers["connection"]) == ("b", "close")
        assert await busy.closed() == b""
        assert await drain == 0


async def test_drain_answers_a_request_that_was_on_its_way_over_an_idle_connection() -> None:
    async with serving() as it:
        client = await it.connect()
        await client.ask(get("/health"))
        drain = asyncio.ensure_future(it.listener.drain(10.0))
        for _ in range(10):  # all that the drain does at once is done
            await asyncio.sleep(0)
        answer = await client.ask(infer([1], id="late"))
        assert (answer.json["id"], answer.headers["connection"]) == ("late", "close")
        assert await client.closed() == b""
        assert await drain == 0


@pytest.mark.parametrize("grace_s", [0.0, 0.05])
async def test_drain_tells_what_is_not_answered_in_time(grace_s: float) -> None:
    async with serving() as it:
        client = await it.connect()
        it.door.gate.clear()
        await client.send(infer([1], id="a"))
        await until(lambda: "a" in it.door.waiting)
        assert await it.listener.drain(grace_s) == 0
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert "grace" in answer.json["error"]
        assert await client.closed() == b""
        await until(lambda: it.door.cancelled == ["a"])


async def test_drain_begins_nothing_once_its_time_is_over() -> None:
    async with serving(max_pipelined=1) as it:
        pipelined, incomplete = await it.connect(), await it.connect()
        it.door.gate.clear()
        requests = infer([1], id="a") + infer([2], id="b")
        last = infer([3], id="c")
        await pipelined.send(requests)
        await incomplete.send(last[:-1])
        await until(lambda: it.listener.counters.bytes_received == len(requests) + len(last) - 1)
        drain = asyncio.ensure_future(it.listener.drain(0.0))
        answers = [await pipelined.answer(), await pipelined.answer()]
        await incomplete.send(last[-1:])
        answers.append(await incomplete.answer())
        assert all("grace" in answer.json["error"] for answer in answers)
        assert ["connection" in answer.headers for answer in answers] == [False, True, True]
        assert [request.id for request in it.door.requests] == ["a"]
        assert await drain == 0


async def test_drain_cuts_what_does_not_take_its_last_words() -> None:
    async with serving() as it:
        client = await it.connect()
        await client.send(infer([1], model="large") * 8)  # 16 MB each, of which nothing is read
        await until(lambda: it.door.requests)
        assert await it.listener.drain(0.05) == 1


async def test_winding_down_tells_clients_to_come_back_elsewhere_and_still_accepts() -> None:
    async with serving() as it:
        it.listener.wind_down()
        client = await it.connect()
        answer = await client.ask(infer([1]))
        assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_a_stream_ends_with_its_end_and_the_connection_is_kept() -> None:
    async with serving() as it:
        client = await it.connect()
        answer = await client.ask(stream([1, 2, 3]))
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
        assert answer.chunks == [b"data: [1.0]\n\n", b"data: [2.0]\n\n", b"data: [3.0]\n\n", b"data: [DONE]\n\n"]
        assert (await client.ask(stream([]))).chunks == [b"data: [DONE]\n\n"]
        assert (await client.ask(infer([1]))).status == 200
        assert it.door.streams_closed == 2


async def test_stream_items_are_sent_as_they_come() -> None:
    async with serving() as it:
        client = await it.connect()
        it.door.gate.clear()
        await client.send(stream([1, 2]))
        await until(lambda: it.door.streams_open == 1)
        it.door.gate.set()
        assert (await client.answer()).complete


async def test_an_error_before_the_first_item_has_its_status() -> None:
    async with serving() as it:
        client = await it.connect()
        answer = await client.ask(stream([-1, 2]))
        assert (answer.status, answer.json["error"]) == (500, "ValueError: negative")
        assert (await client.ask(infer([1]))).status == 200


async def test_a_broken_stream_ends_with_an_error_event_and_closes() -> None:
    async with serving() as it:
        client = await it.connect()
        answer = await client.ask(stream([1, -1, 2]))
        assert answer.status == 200
        assert answer.chunks == [b"data: [1.0]\n\n", b"event: error\ndata: ValueError: negative\n\n"]
        assert await client.closed() == b""


async def test_http_1_0_streams_until_the_connection_closes() -> None:
    async with serving() as it:
        client = await it.connect()
        answer = await client.ask(stream([1, 2], version="1.0"))
        assert "transfer-encoding" not in answer.headers
        assert answer.body == b"data: [1.0]\n\ndata: [2.0]\n\ndata: [DONE]\n\n"


async def test_requests_behind_a_stream_wait_for_its_end() -> None:
    async with serving() as it:
        client = await it.connect()
        await client.send(infer([9], id="before") + stream([1, 2]) + stream([3]) + infer([5], id="after"))
        assert (await client.answer()).json["id"] == "before"
        assert len((await client.answer()).chunks) == 3
        assert len((await client.answer()).chunks) == 2
        assert (await client.answer()).json["id"] == "after"


async def test_moving_to_another_listener_under_load_fails_no_request() -> None:
    """Clients that keep their connections, and go elsewhere when told to close, notice nothing."""
    async with serving() as old, serving() as new:
        ports, answered, over = [old.port], 0, False

        async def client(number: int) -> None:
            nonlocal answered
            while not over:
                reader, writer = await asyncio.open_connection("127.0.0.1", ports[0])
                connection = Client(reader, writer)
                while not over:
                    answer = await connection.ask(infer([number], id=number))
                    assert (answer.status, answer.json["y"]) == (200, [number * 2])
                    answered += 1
                    if "connection" in answer.headers:
                        break
                await connection.close()

        clients = [asyncio.ensure_future(client(number)) for number in range(20)]
        await until(lambda: answered > 200)
        ports[0] = new.port
        old.listener.wind_down()
        await until(lambda: old.listener.counters.connections_open == 0)
        assert await old.listener.drain(5.0) == 0
        before = answered
        await until(lambda: answered > before + 200)
        over = True
        await asyncio.gather(*clients)
        assert old.listener.counters.responses[2] + new.listener.counters.responses[2] == answered


async def test_drain_lets_a_stream_finish() -> None:
    async with serving() as it:
        client = await it.connect()
        it.door.gate.clear()
        await client.send(stream([1, 2, 3]))
        await until(lambda: it.door.streams_open == 1)
        drain = asyncio.ensure_future(it.listener.drain(10.0))
        await asyncio.sleep(0)
        it.door.gate.set()
        answer = await client.answer()
        assert (len(answer.chunks), answer.headers["connection"]) == (4, "close")
        assert await client.closed() == b""
        assert await drain == 0


async def test_a_request_is_told_whose_key_came_with_it() -> None:
    async with serving(api_keys=(("secret", "alice"), ("other", "bob"))) as it:
        client = await it.connect()
        for key, name in (("secret", "alice"), ("other", "bob")):
            await client.ask(infer([1], "a", "double", f"Authorization: Bearer {key}"))
            assert it.protocol.last is not None
            assert it.protocol.last.caller == name
        await client.ask(get("/health"))  # public
