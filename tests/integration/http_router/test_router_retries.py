"""What the router does when a replica refuses, drops, turns away or dawdles: again where that is safe, and only there."""

from __future__ import annotations

import asyncio
import json
import select
import socket

import pytest
from router_harness import (
    SECONDS,
    Replica,
    Request,
    chunked,
    dies,
    echo,
    echoes_after,
    endpoint,
    post,
    replicas,
    rig,
    says,
    silent,
    until,
)

from penstock.core.errors import InvalidInput
from penstock.fleet.router.hooks import Answer, Decision, Headers
from penstock.fleet.routes import Arm, Endpoint, Tenant, Upstream
from penstock.fleet.spec import Requests, Shadow, Sticky

NOBODY = "127.0.0.1:1"  # nothing listens there: connections are refused

turned_away = says(b'{"error":"full"}', "503 Service Unavailable", "Penstock-Error: Overloaded\r\nRetry-After: 1\r\n")


async def test_a_refused_connection_costs_the_caller_nothing() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(Upstream("dead", NOBODY), replica))
        caller = await router.caller()
        for number in range(50):
            caller.send(post(b"%d" % number))
            answer = await caller.answer()
            assert (answer.status, answer.body) == (200, b"%d" % number)
        assert router.balancer.failing == {"dead"}


async def test_with_all_replicas_away_requests_wait_until_one_is_back() -> None:
    replica = await Replica(echo).start()
    await replica.stop()
    async with rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post(b"abc"))
        await until(lambda: "r1" in router.balancer.failing)
        await replica.start()
        assert (await caller.answer()).body == b"abc"
        await replica.stop()


async def test_a_lost_request_is_not_sent_again_unless_that_is_safe() -> None:
    async with replicas(Replica(dies, "a"), Replica(dies, "b")) as (one, two), rig() as router:
        router.follow(endpoint(one, two))
        answer = await router.ask(post())
        assert answer.status == 503 and answer.headers["penstock-error"] == "WorkerLost"
        assert answer.headers["retry-after"] == "1" and answer.headers["penstock-revision"] == "1"
        assert len(one.seen) + len(two.seen) == 1


@pytest.mark.parametrize("method", ["idempotent", "GET"])
async def test_a_lost_request_is_sent_again_where_that_is_safe(method: str) -> None:
    async with replicas(Replica(dies, "a"), Replica(echo, "b")) as (one, two), rig() as router:
        router.follow(endpoint(one, two, requests=Requests(idempotent=method == "idempotent", retry_budget=1.0)))
        data = post(b"abc") if method == "idempotent" else b"GET /v2/models/fraud HTTP/1.1\r\nHost: a\r\n\r\n"
        for _ in range(20):
            answer = await router.ask(data)
            assert answer.status == 200 and answer.body == (b"abc" if method == "idempotent" else b"")
        assert one.seen, "the dying one was tried"


async def test_what_a_replica_never_read_is_sent_again_although_it_was_sent() -> None:
    def answer(connection: socket.socket) -> None:
        data = b""
        while not data.endswith(b"abc"):
            data += connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def replica(listening: socket.socket) -> None:
        """Closes its first connection when the second request lies there, and reads that on another one."""
        with listening.accept()[0] as connection:
            answer(connection)
            select.select([connection], [], [], SECONDS)
        with listening.accept()[0] as connection:
            answer(connection)
            select.select([connection], [], [], SECONDS)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(SECONDS)
        async with rig() as router:
            upstream = Upstream("a", f"127.0.0.1:{listening.getsockname()[1]}")
            router.follow(endpoint(upstream))
            work = asyncio.create_task(asyncio.to_thread(replica, listening))
            caller = await router.caller()
            for _ in range(2):
                caller.send(post(b"abc"))
                assert (await caller.answer()).body == b"ok"
            lane = router.balancer.services["fraud"].lanes[0]
            assert lane.tally.retries == 1 and not lane.ejected
        await work


async def test_what_no_user_code_saw_goes_to_another_replica() -> None:
    async with replicas(Replica(turned_away, "a"), Replica(echo, "b")) as (one, two), rig() as router:
        router.follow(endpoint(one, two, requests=Requests(retry_budget=1.0)))
        caller = await router.caller()
        for _ in range(20):
            caller.send(post(b"abc"))
            assert (await caller.answer()).body == b"abc"
        assert one.seen and router.balancer.services["fraud"].lanes[0].tally.retries == len(one.seen)


async def test_a_lost_worker_is_tried_elsewhere_only_where_that_is_safe() -> None:
    lost = says(b'{"error":"lost"}', "503 Service Unavailable", "Penstock-Error: WorkerLost\r\nRetry-After: 1\r\n")
    async with replicas(Replica(lost, "a"), Replica(echo, "b")) as (one, two), rig() as router:
        for idempotent in (False, True):
            router.follow(endpoint(one, two, requests=Requests(idempotent=idempotent, retry_budget=1.0)))
            found = {(await router.ask(post(b"abc"))).status for _ in range(30)}
            assert found == ({200} if idempotent else {200, 503})


async def test_the_only_replicas_word_is_passed_on() -> None:
    async with replicas(Replica(turned_away)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        answer = await router.ask(post())
        assert answer.status == 503 and json.loads(answer.body) == {"error": "full"}
        assert answer.headers["retry-after"] == "1" and len(replica.seen) == 1


async def test_retries_stay_within_the_budget() -> None:
    async with replicas(Replica(turned_away, "a"), Replica(turned_away, "b")) as (one, two), rig() as router:
        router.follow(endpoint(one, two, requests=Requests(retry_budget=0.2)))
        caller = await router.caller()
        for _ in range(100):
            caller.send(post())
            assert (await caller.answer()).status == 503
        assert 100 < len(one.seen) + len(two.seen) <= 121


async def test_a_hedge_overtakes_a_replica_that_dawdles() -> None:
    async with replicas(Replica(silent, "a"), Replica(echo, "b")) as (one, two), rig() as router:
        requests = Requests(idempotent=True, hedge_after_s=0.03, retry_budget=1.0)
        router.follow(endpoint(one, two, requests=requests))
        for _ in range(10):
            assert (await router.ask(post(b"abc"))).body == b"abc"
        assert one.seen
        await until(lambda: one.open == 0, "the slower one is told that nobody waits")


async def test_a_body_that_streams_is_never_sent_a_second_time() -> None:
    async def slowly(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        await echo(request, writer)

    async with replicas(Replica(slowly, "a"), Replica(slowly, "b")) as (one, two), rig() as router:
        router.follow(endpoint(one, two, requests=Requests(idempotent=True, hedge_after_s=0.01, retry_budget=1.0)))
        body = b"x" * 3_000_000
        for data in (post(body), chunked([body[:50_000]] * 60)):
            assert (await router.ask(data)).body == body
        assert len(one.seen) + len(two.seen) == 2


async def test_a_hedge_saves_a_request_whose_first_replica_dies() -> None:
    async def dies_later(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.06)
        await dies(request, writer)

    async def slowly(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        await echo(request, writer)

    async with replicas(Replica(dies_later, "a"), Replica(slowly, "b")) as (one, two), rig() as router:
        router.follow(endpoint(one, two, requests=Requests(idempotent=True, hedge_after_s=0.01, retry_budget=1.0)))
        for _ in range(5):
            assert (await router.ask(post(b"abc"))).body == b"abc"


async def test_at_zero_a_hundred_requests_are_held_and_answered() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(Endpoint("fraud", (), 1, waking=True))
        woken: list[object] = []
        router.balancer.on_sleeping = woken.append
        callers = [await router.caller() for _ in range(100)]
        for number, caller in enumerate(callers):
            caller.send(post(b"%d" % number))
        await until(lambda: router.balancer.services["fraud"].waiting == 100)
        assert woken and not replica.seen
        await asyncio.sleep(0.1)
        router.follow(endpoint(replica))
        answers = [await caller.answer() for caller in callers]
        assert all(int(request.headers["penstock-timeout-ms"]) <= 59_900 for request in replica.seen), "what is left"
        assert [answer.body for answer in answers] == [b"%d" % number for number in range(100)]


async def test_the_hold_is_bounded_and_within_the_deadline() -> None:
    async with rig() as router:
        router.follow(Endpoint("fraud", (), 1, waking=True, requests=Requests(max_waiting=2)))
        callers = [await router.caller() for _ in range(2)]
        for caller in callers:
            caller.send(post(b"{}", "Penstock-Timeout-Ms: 200"))
        await until(lambda: router.balancer.services["fraud"].waiting == 2)
        full = await router.ask(post())
        assert full.status == 503 and full.headers["penstock-error"] == "Overloaded" and "retry-after" in full.headers
        for caller in callers:
            assert (await caller.answer()).status == 504
        assert router.balancer.services["fraud"].waiting == 0


async def test_a_held_caller_that_leaves_frees_its_place() -> None:
    async with rig() as router:
        router.follow(Endpoint("fraud", (), 1, waking=True))
        caller = await router.caller()
        caller.send(post())
        await until(lambda: router.balancer.services["fraud"].waiting == 1)
        caller.close()
        await until(lambda: router.balancer.services["fraud"].waiting == 0)


async def test_a_large_body_waits_with_its_sender() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(Endpoint("fraud", (), 1, waking=True))
        caller = await router.caller()
        body = b"x" * (8 << 20)
        caller.send(post(body))
        await until(lambda: router.balancer.services["fraud"].waiting == 1)
        await asyncio.sleep(0.05)
        assert caller.writer.transport.get_write_buffer_size() > 0, "it is not read before there is a replica"
        router.follow(endpoint(replica))
        assert (await caller.answer()).body == body


async def test_a_replica_never_gets_more_than_its_limit() -> None:
    running = most = 0

    async def counts(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        await echo(request, writer)

    async with replicas(Replica(counts)) as (replica,), rig() as router:
        router.follow(endpoint(replica, requests=Requests(max_in_flight=3)))
        answers = await asyncio.gather(*(router.ask(post(b"%d" % number)) for number in range(30)))
        assert [answer.body for answer in answers] == [b"%d" % number for number in range(30)]
        assert most == 3


async def test_a_replica_out_of_the_table_ends_what_it_has() -> None:
    go = asyncio.Event()
    async with replicas(Replica(echoes_after(go), "a"), Replica(echo, "b")) as (one, two), rig() as router:
        router.follow(endpoint(one))
        caller = await router.caller()
        caller.send(post(b"abc"))
        await until(lambda: len(one.seen) == 1)
        router.follow(endpoint(two))
        assert (await router.ask(post(b"new"))).body == b"new"
        assert len(one.seen) == 1
        go.set()
        assert (await caller.answer()).body == b"abc"
        await until(lambda: one.open == 0, "its connections are closed")


async def test_a_session_stays_with_one_replica() -> None:
    async with replicas(*(Replica(says(name.encode()), name) for name in "abcd")) as given, rig() as router:
        router.follow(endpoint(*given, requests=Requests(affinity=Sticky("cookie", "session"))))
        for user in range(10):
            answers = {(await router.ask(post(b"{}", f"Cookie: x=1; session=u{user}"))).body for _ in range(5)}
            assert len(answers) == 1


class Decides:
    """Always the second arm; remembers what was answered."""

    def __init__(self) -> None:
        self.headers: Headers = {}
        self.answered_with: list[tuple[int, int]] = []

    def decide(self, endpoint: Endpoint, headers: Headers, body: bytes, number: float) -> Decision:
        self.headers = headers
        if body == b"bad":
            raise InvalidInput("the context has no numbers")
        return Decision(1, 0.3, "token-1")

    def answered(self, endpoint: Endpoint, decision: Decision, revision: int, status: int, latency_s: float) -> None:
        self.answered_with.append((revision, status))


async def test_decisions_are_asked_for_logged_endpoints() -> None:
    async with replicas(Replica(says(b"one"), "a"), Replica(says(b"two"), "b")) as (one, two), rig() as router:
        decides = router.hooks.decisions = Decides()
        router.follow(
            Endpoint("fraud", (Arm(1, 0.7, (one.upstream,)), Arm(2, 0.3, (two.upstream,))), 1, logged=True)
        )  # fmt: skip
        answer = await router.ask(post(b"{}", "X-User: 7"))
        assert (answer.body, answer.headers["penstock-decision"]) == (b"two", "token-1")
        assert decides.headers["x-user"] == "7" and decides.answered_with == [(2, 200)]
        about = await router.ask(b"GET /v2/models/fraud HTTP/1.1\r\nHost: a\r\n\r\n")
        assert about.status == 200 and "penstock-decision" not in about.headers, (
            "a question about the model is none to it"
        )
        counted = [lane.tally.take() for lane in router.balancer.services["fraud"].lanes]
        assert sum(one.requests for one in counted if one is not None) == 1
        refused = await router.ask(post(b"bad"))
        assert refused.status == 400 and refused.headers["penstock-error"] == "InvalidInput"


class Compares:
    def __init__(self) -> None:
        self.pairs: list[tuple[Answer, Answer]] = []
        self.skipped: list[str] = []

    def wants(self, endpoint: Endpoint, number: float) -> bool:
        return True

    def compare(self, endpoint: Endpoint, live: Answer, shadow: Answer) -> None:
        self.pairs.append((live, shadow))

    def skip(self, endpoint: Endpoint, why: str) -> None:
        self.skipped.append(why)


async def test_a_shadow_gets_a_copy_and_its_caller_never_waits_for_it() -> None:
    go = asyncio.Event()

    async def later(request: Request, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await says(b"shadow", "500 Internal Server Error")(request, writer)

    async with replicas(Replica(echo, "a"), Replica(later, "b")) as (live, shadow), rig() as router:
        compares = router.hooks.mirror = Compares()
        arms = (Arm(1, 1.0, (live.upstream,)), Arm(2, 0.0, (shadow.upstream,)))
        router.follow(Endpoint("fraud", arms, 1, shadow=Shadow(2)))
        assert (await router.ask(post(b"abc"))).body == b"abc"
        assert not compares.pairs
        go.set()
        await until(lambda: len(compares.pairs) == 1)
        one, other = compares.pairs[0]
        assert (one.revision, one.status, one.body) == (1, 200, b"abc")
        assert (other.revision, other.status, other.body) == (2, 500, b"shadow")
        assert shadow.seen[0].body == b"abc"
        shadow.script = dies
        assert (await router.ask(post(b"abc"))).status == 200
        await until(lambda: len(compares.pairs) == 2)
        assert compares.pairs[1][1].status == 0
        assert (await router.ask(post(b"x" * 400_000))).status == 200
        assert "too_large" in compares.skipped


async def test_tenants_keys_rates_and_what_a_replica_sees_of_them() -> None:
    import hashlib

    def tenant(name: str, **more: object) -> Tenant:
        return Tenant(name, hashlib.sha256(name.encode()).hexdigest(), **more)  # type: ignore[arg-type]

    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(
            endpoint(replica),
            tenants=(tenant("gold"), tenant("slow", rate=0.001, burst=1), tenant("other", deployments=("x",))),
        )
        assert (await router.ask(post())).status == 401
        assert (await router.ask(post(b"{}", "Authorization: Bearer wrong"))).headers["penstock-error"] == (
            "Unauthenticated"
        )
        assert (await router.ask(post(b"{}", "Authorization: Bearer gold"))).status == 200
        assert (await router.ask(post(b"{}", "X-API-Key: slow"))).status == 200
        slow = await router.ask(post(b"{}", "X-API-Key: slow"))
        assert (
            slow.status == 429 and slow.headers["penstock-error"] == "QuotaExceeded" and "retry-after" in slow.headers
        )
        assert (await router.ask(post(b"{}", "X-API-Key: other"))).status == 403
        assert len(replica.seen) == 2
        assert all(not {"authorization", "x-api-key"} & set(request.headers) for request in replica.seen)
        assert (await router.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
        assert (await router.ask(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")).status == 401


class Rewards:
    async def feedback(self, name: str, body: bytes) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        return 200, b'{"name":"%b","bytes":%d}' % (name.encode(), len(body))


async def test_rewards_go_to_the_recorder() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        assert (await router.ask(post(path="/endpoints/fraud/feedback"))).status == 503
        router.hooks.feedback = Rewards()
        for path in ("/endpoints/fraud/feedback", "/v2/models/fraud/feedback"):
            answer = await router.ask(post(b"x" * 1_000_000, path=path))
            assert answer.status == 200 and json.loads(answer.body) == {"name": "fraud", "bytes": 1_000_000}
        assert (await router.ask(post(path="/endpoints/none/feedback"))).status == 404
        assert not replica.seen
