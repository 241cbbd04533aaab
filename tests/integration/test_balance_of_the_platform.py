"""`requests.balance` under `penstock up`, with real replicas of the echo engine: which of them answers, by the counters
that each keeps itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_fleet import FleetFactory, RunningFleet, until

pytestmark = pytest.mark.timeout(180)

NAME = "chat"
_COUNT = re.compile(r'^penstock_requests_total\{[^}]*model="chat"[^}]*\} ([0-9.e+]+)$', re.MULTILINE)
LONG = "once upon a time there was a router that told nobody where it went, " * 20


class Platform:
    """One deployment of three replicas. Requests are asked one after the other, each on a connection of its own."""

    def __init__(self, running: RunningFleet, model: Path, count: int = 3, **options: object) -> None:
        self.running = running
        self._count = count
        running.fleet.deploy(
            NAME, str(model), replicas=count, options={"options": {"context_tokens": 16384, **options}}
        )
        running.fleet.wait(NAME)
        self.ready()
        until(lambda: self.ask("are you there") is not None, "an answer")

    def ready(self) -> dict[str, tuple[str, int]]:
        """Address and process of each replica, once all are ready."""

        def found() -> dict[str, tuple[str, int]]:
            rows = self.running.fleet.status(NAME).replicas
            ready = {one.id: (one.http, one.pid or 0) for one in rows if one.state == "ready"}
            return ready if len(ready) == self._count == len(rows) else {}

        return until(found, f"{self._count} replicas")

    def balanced(self, **requests: object) -> None:
        self.running.fleet.deploy(NAME, requests={"balance": "auto", "affinity": None, **requests})

    def ask(self, text: str, model: str = NAME, **headers: str) -> str:
        """What is answered. Raises: OSError: nothing is."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        asked = urllib.request.Request(
            f"{self.running.http}/v1/chat/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json", **headers},
        )  # fmt: skip
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return str(json.loads(answer.read())["choices"][0]["message"]["content"])

    def counts(self) -> dict[str, int]:
        """Requests that each replica ended."""
        found = {}
        for id, (http, _) in self.ready().items():
            with urllib.request.urlopen(f"http://{http}/metrics", timeout=30) as answer:
                found[id] = int(sum(float(value) for value in _COUNT.findall(answer.read().decode())))
        return found

    def spread(self, *texts: str, model: str = NAME, **headers: str) -> dict[str, int]:
        """How many of these each replica answered."""
        before = self.counts()
        for text in texts:
            self.ask(text, model, **headers)
        # A replica counts a request once its answer is written, which may be after it was read.
        until(lambda: sum(self.counts().values()) >= sum(before.values()) + len(texts), "all counted")
        return {id: count - before[id] for id, count in self.counts().items()}

    def home(self, text: str, model: str = NAME, **headers: str) -> str:
        """Which replica answers this."""
        return next(id for id, count in self.spread(text, model=model, **headers).items() if count)

    @contextlib.contextmanager
    def held(self) -> Iterator[str]:
        """While one request is at a replica: which one that is, where the model is slow."""
        host, _, port = self.running.http.removeprefix("http://").rpartition(":")
        body = json.dumps(
            {"model": NAME, "messages": [{"role": "user", "content": "x" * 4000}], "max_tokens": 4000, "stream": True}
        )
        with socket.create_connection((host, int(port)), timeout=30) as caller:
            caller.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            assert b"200 OK" in caller.recv(4096)  # its first token is there
            reader = threading.Thread(target=lambda: [None for _ in iter(lambda: caller.recv(65536), b"")], daemon=True)
            reader.start()
            yield until(self._busy, "a replica that has it")
            caller.shutdown(socket.SHUT_RDWR)
            reader.join(30)

    def _busy(self) -> str:
        for id, (http, _) in self.ready().items():
            with urllib.request.urlopen(f"http://{http}/metrics", timeout=30) as answer:
                if re.search(r"^penstock_llm_running\{[^}]*\} [1-9]", answer.read().decode(), re.MULTILINE):
                    return id
        return ""


def turns(count: int, about: str = "") -> list[str]:
    """A conversation that grows."""
    return [about + LONG + "and then? " * number for number in range(count)]


ADAPTERS = tuple(f"style-{number}" for number in range(8))


@pytest.fixture(scope="module")
def platform(shared_fleet: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    path = tmp_path_factory.mktemp("model") / "echo.llmecho"
    path.touch()
    adapters = {f"lora.{name}": str(path) for name in ADAPTERS}
    return Platform(shared_fleet("--no-grpc"), path, delay_s=0.02, **adapters)


def test_each_balance_chooses_as_it_says(platform: Platform) -> None:
    pids = sorted(pid for _, pid in platform.ready().values())

    def pattern() -> list[int]:
        return sorted(platform.spread(*turns(6)).values())

    assert pattern() == [0, 0, 6], "auto: a conversation stays where its beginning is"
    platform.balanced(balance="round_robin")
    until(lambda: pattern() == [2, 2, 2], "one after the other")
    platform.balanced(balance="least")
    with platform.held() as busy:
        until(lambda: platform.spread(*turns(6))[busy] == 0, "a replica with a request in flight left alone")
    platform.balanced(balance="affinity", affinity={"by": "header", "name": "session"})

    def homes() -> list[set[str]]:
        return [
            {platform.home(f"{turn} of {session}", Session=f"s{session}") for turn in range(2)} for session in range(6)
        ]

    until(lambda: all(len(home) == 1 for home in homes()), "one replica for each session")
    assert len(set.union(*homes())) > 1, "not the same for all"
    platform.balanced(balance="prefix")
    until(lambda: pattern() == [0, 0, 6], "a conversation where its beginning is")
    platform.balanced()
    assert pids == sorted(pid for _, pid in platform.ready().values()), "nothing was started anew for it"


def test_each_adapter_stays_on_the_replica_that_has_loaded_it(platform: Platform) -> None:
    found = {}
    for name in ADAPTERS:
        before = platform.spread("one", "another one", "and a third", model=name)
        assert sorted(before.values()) == [0, 0, 3]
        found[name] = next(id for id, count in before.items() if count)
    assert len(set(found.values())) > 1, "not all on the same"
    for name in reversed(ADAPTERS):
        assert platform.home("later", model=name) == found[name]


def test_the_sessions_of_a_killed_replica_move_and_only_those(platform: Platform) -> None:
    """And a conversation that was there goes on elsewhere, and stays where it went."""
    platform.balanced(affinity={"by": "header", "name": "session"})
    sessions = [f"s{number}" for number in range(9)]

    def homes() -> dict[str, str]:
        return {session: platform.home("hello", Session=session) for session in sessions}

    before = until(lambda: found if (found := homes()) == homes() and len(set(found.values())) > 1 else None, "homes")
    assert before is not None
    victim = platform.home(LONG)
    there = set(platform.ready())
    os.kill(platform.ready()[victim][1], signal.SIGKILL)
    until(lambda: victim not in platform.ready(), "another replica in its place")
    for session in sessions:  # whoever had none yet got one
        until(lambda session=session: platform.ask("are you there", Session=session), "an answer")  # type: ignore[misc]
    after = homes()
    assert victim not in after.values()
    new = set(platform.ready()) - there
    for session in sessions:
        assert before[session] == victim or after[session] in {before[session], *new}, "it moved without a cause"
    assert sorted(platform.spread(*turns(6)).values()) == [0, 0, 6]


def test_two_routers_send_a_cold_beginning_to_the_same_replica(fleet: FleetFactory, llmecho: Path) -> None:
    """Each connection comes to one of the two, as the kernel likes. They do not tell each other what they sent."""
    platform = Platform(fleet("--no-grpc", "--routers", "2"), llmecho)
    places = set()
    for number in range(6):
        spread = platform.spread(*turns(6, f"{number}. "))
        assert sorted(spread.values()) == [0, 0, 6]
        places.add(next(id for id, count in spread.items() if count))
    assert len(places) > 1, "other beginnings are elsewhere"
