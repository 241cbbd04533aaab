"""Under random sizes, errors, deadlines and cancels every answer is its own request's, and every request
ends once.

Each row carries a number or a word that no other row of the run carries, and every output is made from it. The
requests are kept in a ledger, which the server's own counters must equal. Requests that their caller gives up are the
only ones that the ledger cannot place: the server may have answered one a moment before, or never have seen it. So
they come in a second part, which must leave nothing behind either.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

import penstock
from penstock.core import errors

onnx = pytest.importorskip("onnx", reason="needs onnx to write a model: make test installs it")

AT_ONCE = 48
BAD = 99
MODELS = """
import time

import numpy as np

import penstock


@penstock.model(inputs={"x": "i8[n, k]", "code": "i8[n]"}, outputs={"y": "i8[n, k]", "z": "i8[n, k]"})
def numbers(x, code):
    if (code == 99).any():
        raise ValueError("a bad row")
    if x[0, 0] % 4 == 0:
        time.sleep(0.002)  # work, so that others wait, join and run late
    return {"y": x, "z": 3 * x + code[:, None]}


@penstock.model(inputs={"text": "str[n]"}, outputs={"reversed": "str[n]"})
def words(text):
    if "bad" in text:
        raise ValueError("a bad row")
    return {"reversed": np.array([word[::-1] for word in text], dtype=object)}
"""


def write_onnx(path: Path) -> None:
    """y = x, z = 3 x + table[code]: a code outside of the table is an error of ONNX Runtime."""
    helper, integer = onnx.helper, onnx.TensorProto.INT64
    constants = {"table": np.arange(10), "three": np.array(3), "one": np.array([1])}
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Gather", ["table", "code"], ["found"]),
            helper.make_node("Unsqueeze", ["found", "one"], ["column"]),
            helper.make_node("Mul", ["x", "three"], ["tripled"]),
            helper.make_node("Add", ["tripled", "column"], ["z"]),
        ],
        "fingerprint",
        [
            helper.make_tensor_value_info("x", integer, ["n", "k"]),
            helper.make_tensor_value_info("code", integer, ["n"]),
        ],
        [helper.make_tensor_value_info(name, integer, ["n", "k"]) for name in "yz"],
        [onnx.numpy_helper.from_array(value.astype("i8"), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))


@dataclass(frozen=True)
class Ask:
    """One request and the only right answer to it. `give_up_s` is when its caller no longer waits, if ever."""

    model: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    bad: bool
    timeout_us: int | None
    give_up_s: float | None


@dataclass
class Ledger:
    """What the callers saw: requests by model and outcome, and those given up by model."""

    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)
    mixed_up: list[str] = field(default_factory=list)


class Asks:
    """Random requests, every row of which is unlike all others of the run."""

    NUMBERS = ("numbers", "split", "onnx-inline", "onnx-process")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        # Odd multiples are a permutation of 2**60 numbers: unique, and without a pattern that a mix-up could keep.
        self._fingerprints = ((number * 0x9E3779B97F4A7C15) % 2**60 for number in itertools.count(1))

    def make(self, *, give_up: bool) -> Ask:
        rolled = self.random
        rows = rolled.choice((1, 1, 1, 1, 2, 2, 3, 5, 8, 16))
        bad = rolled.random() < 0.08
        timeout_us = rolled.randrange(200, 8000) if rolled.random() < 0.15 else None
        give_up_s = rolled.uniform(0, 0.01) if give_up and rolled.random() < 0.2 else None
        model = rolled.choice((*self.NUMBERS, "words"))
        if model == "words":
            words = [f"{next(self._fingerprints):x} é {index}" for index in range(rows)]
            if bad:
                words[rolled.randrange(rows)] = "bad"
            answer = [word[::-1].encode() for word in words]
            inputs = {"text": np.array([word.encode() for word in words], dtype=object)}
            outputs = {"reversed": np.array(answer, dtype=object)}
        else:
            columns = rolled.choice((1, 1, 2))  # only like may be joined with like
            x = np.fromiter(self._fingerprints, "i8", rows * columns).reshape(rows, columns)
            code = np.array([rolled.randrange(10) for _ in range(rows)])
            inputs, outputs = {"x": x, "code": code}, {"y": x, "z": 3 * x + code[:, None]}
            if bad:
                code[rolled.randrange(rows)] = BAD
        return Ask(model, inputs, outputs, bad, timeout_us, give_up_s)


# Outcomes by what the caller is told. Source: docs/metrics.md. Anything else fails the test with its message.
OUTCOME_OF_ERROR = {
    errors.InvalidInput: "invalid",
    errors.ServableError: "model_error",
    errors.Overloaded: "queue_full",
    errors.DeadlineExceeded: "deadline",
}
OUTCOME_OF_STATUS = {
    "INVALID_ARGUMENT": "invalid",
    "INTERNAL": "model_error",
    "UNAVAILABLE": "queue_full",
    "DEADLINE_EXCEEDED": "deadline",
}
Answer = Mapping[str, Any] | str  # the outputs, or the outcome
Caller = Callable[[Ask], Any]


class Callers:
    """Three ways to send a request, all to one server."""

    def __init__(self, server: Any) -> None:
        parts = urlsplit(server.http)
        self._host, self._port = str(parts.hostname), parts.port or 0
        self.client = penstock.AsyncClient(server.http, retries=0, timeout_s=30)
        self._triton = triton.InferenceServerClient(server.grpc)
        self.ways: tuple[Caller, ...] = (self.binary, self.grpc, self.socket)

    async def close(self) -> None:
        await self.client.close()
        await self._triton.close()

    async def binary(self, ask: Ask) -> Answer:
        parameters = {} if ask.timeout_us is None else {"timeout": ask.timeout_us}
        try:
            return await self.client.infer(ask.model, ask.inputs, parameters=parameters)
        except tuple(OUTCOME_OF_ERROR) as error:
            return OUTCOME_OF_ERROR[type(error)]

    async def grpc(self, ask: Ask) -> Answer:
        inputs = []
        for name, array in ask.inputs.items():
            inputs.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        try:
            result = await self._triton.infer(ask.model, inputs, timeout=ask.timeout_us)
        except InferenceServerException as error:
            return OUTCOME_OF_STATUS[str(error.status()).removeprefix("StatusCode.")]
        return {name: result.as_numpy(name) for name in ask.outputs}

    async def socket(self, ask: Ask) -> Answer:
        """V2 JSON on a connection of its own, which a caller that gives up just closes."""
        inputs = [
            {
                "name": name,
                "shape": array.shape,
                "datatype": "BYTES" if array.dtype == object else "INT64",
                "data": [item.decode() if isinstance(item, bytes) else item for item in array.ravel().tolist()],
            }
            for name, array in ask.inputs.items()
        ]
        parameters = {} if ask.timeout_us is None else {"timeout": ask.timeout_us}
        body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
        head = f"POST /v2/models/{ask.model}/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(head.encode() + body[: len(body) // 2])
            await asyncio.sleep(0)  # others run: some are given up with half of their body sent
            writer.write(body[len(body) // 2 :])
            received = await reader.read()
        finally:
            writer.close()
        first, _, rest = received.partition(b"\r\n\r\n")
        fields = {
            key.lower(): value for key, value in re.findall(r"^([\w-]+): (.*?)\r?$", first.decode(), re.MULTILINE)
        }
        assert len(rest) == int(fields["content-length"]), "more or less than one answer"
        if "penstock-error" in fields:
            return OUTCOME_OF_ERROR[getattr(errors, fields["penstock-error"])]
        return {
            output["name"]: np.array(
                [item.encode() if isinstance(item, str) else item for item in output["data"]],
                object if output["datatype"] == "BYTES" else "i8",
            ).reshape(output["shape"])
            for output in json.loads(rest)["outputs"]
        }


async def settle(call: Caller, ask: Ask, ledger: Ledger) -> None:
    """Sends one request, and writes down how it ended."""
    try:
        async with asyncio.timeout(ask.give_up_s):
            answer = await call(ask)
    except TimeoutError:
        ledger.given_up[ask.model] += 1
        return
    if isinstance(answer, str):
        if answer in ("invalid", "model_error") and not ask.bad:
            ledger.mixed_up.append(f"{ask.model} failed for somebody else's row")
        ledger.ended[ask.model, answer] += 1
        return
    ledger.ended[ask.model, "success"] += 1
    if ask.bad:
        ledger.mixed_up.append(f"{ask.model} answered a bad row")
    for name, expected in ask.outputs.items():
        if answer[name].shape != expected.shape or (answer[name] != expected).any():
            ledger.mixed_up.append(f"{ask.model} {call.__name__}: {name} is {answer[name]}, not {expected}")


async def counted(client: penstock.AsyncClient) -> tuple[Counter[tuple[str, str]], float]:
    """Ended requests by model and outcome as the server counts them, and how many it still holds."""
    ended: Counter[tuple[str, str]] = Counter()
    held = 0.0
    for name, labels, value in re.findall(
        r"^(penstock_requests_\w+)\{(.*)\} (\S+)$", await client.metrics(), re.MULTILINE
    ):
        label = dict(re.findall(r'(\w+)="(.*?)"', labels))
        if name == "penstock_requests_total":
            ended[label["model"], label["outcome"]] += int(float(value))
        else:
            held += float(value)
    return +ended, held


async def run(callers: Callers, asks: Asks, count: int, *, give_up: bool) -> Ledger:
    ledger, left = Ledger(), iter(range(count))

    async def caller() -> None:
        for _ in left:
            await settle(asks.random.choice(callers.ways), asks.make(give_up=give_up), ledger)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(caller())
    assert not ledger.mixed_up, f"{len(ledger.mixed_up)} of {count}: {ledger.mixed_up[:5]}"
    assert ledger.ended.total() + ledger.given_up.total() == count
    return ledger


async def until(client: penstock.AsyncClient, claim: Callable[[float], bool]) -> Counter[tuple[str, str]]:
    """The server's counts, once the claim holds for the number of requests that it holds."""
    async with asyncio.timeout(15):
        while True:
            ended, held = await counted(client)
            if claim(held):
                return ended
            await asyncio.sleep(0.02)


async def quiet(client: penstock.AsyncClient) -> Counter[tuple[str, str]]:
    """The server's counts once it holds no request."""
    return await until(client, lambda held: held == 0)


@pytest.mark.parametrize("fronts", [1, 2])
@pytest.mark.parametrize("count", [3000, pytest.param(200_000, marks=[pytest.mark.chaos, pytest.mark.timeout(1200)])])
async def test_every_answer_is_its_own_and_every_request_ends_once(
    server: Callable[..., Any], tmp_path: Path, fronts: int, count: int
) -> None:
    file = tmp_path / "fingerprints.py"
    file.write_text(MODELS)
    write_onnx(tmp_path / "fingerprint.onnx")
    # The delay is long enough for batches of several callers, whose rows could be mixed up. Warm-up is left out: what it
    # measures on a busy machine can decide that joining rows does not pay.
    table: dict[str, object] = {"max_batch_size": 16, "batch_delay_s": 0.004, "workers": 1, "warm_up": False}
    models = {
        "numbers": {**table, "path": f"{file}:numbers", "workers": 2, "max_queue": 10},
        "split": {**table, "path": f"{file}:numbers", "max_batch_size": 4, "batch_delay_s": 0},
        "words": {**table, "path": f"{file}:words"},
        "onnx-inline": {
            "path": str(tmp_path / "fingerprint.onnx"),
            "max_batch_size": 16,
            "batch_delay_s": 0.004,
            "executor": "inline",
            "warm_up": False,
        },
        "onnx-process": {**table, "path": str(tmp_path / "fingerprint.onnx"), "executor": "process"},
    }
    callers, asks = Callers(server(models, fronts=fronts)), Asks(seed=fronts)
    try:
        before = await quiet(callers.client)
        patient = await run(callers, asks, count // 2, give_up=False)
        between = await quiet(callers.client)
        assert between - before == patient.ended
        assert {outcome for _, outcome in patient.ended} == set(OUTCOME_OF_STATUS.values()) | {"success"}

        hasty = await run(callers, asks, count // 2, give_up=True)
        added = await quiet(callers.client) - between
        assert hasty.given_up.total() > count / 50
        unplaced = added - hasty.ended
        assert unplaced + hasty.ended == added, "an answer that a caller has seen is not counted"
        for model, given_up in hasty.given_up.items():
            assert sum(number for (name, _), number in unplaced.items() if name == model) <= given_up
        assert {outcome for _, outcome in unplaced} <= {*OUTCOME_OF_STATUS.values(), "success", "cancelled"}

        statistics = await callers.client.statistics()
        batches, answered = sum(one.execution_count for one in statistics), sum(one.success.count for one in statistics)
        assert batches < 0.95 * answered, "hardly anything was joined, so hardly anything could be mixed up"
    finally:
        await callers.close()


LATE = """
import time

import penstock


@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"})
def late(x):
    time.sleep(0.25)
    if (x < 0).any():
        raise ValueError("a negative number")
    return {"y": x}
"""


@pytest.fixture
def late(server: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "late.py").write_text(LATE)
    table = {"path": f"{tmp_path}/late.py:late", "workers": 1, "warm_up": False}
    return lambda **options: server({"late": {**table, **options}})


async def test_request_of_several_batches_is_counted_once(late: Callable[..., Any]) -> None:
    async with penstock.AsyncClient(late(max_batch_size=4).http) as client:
        await client.infer("late", {"x": np.ones(10)})
        assert await quiet(client) == {("late", "success"): 1}


async def test_deadline_out_of_reach_is_counted_as_its_caller_sees_it(late: Callable[..., Any]) -> None:
    async with penstock.AsyncClient(late(batch=False).http, retries=0) as client:
        ask = functools.partial(client.infer, "late", {"x": np.ones(1)})
        await ask()  # now the server knows how long one takes
        patient = asyncio.gather(ask(), ask(), ask())
        await until(client, lambda held: held == 3 + 2)  # one is in the model, two are in flight and in the queue
        with pytest.raises(errors.Overloaded, match="deadline"):
            await ask(parameters={"timeout": 50_000})
        await patient
        assert await quiet(client) == {("late", "success"): 4, ("late", "queue_full"): 1}


async def test_caller_who_left_is_counted_even_when_the_model_raises(late: Callable[..., Any]) -> None:
    async with penstock.AsyncClient(late().http, retries=0) as client:
        for value in (1.0, -1.0):
            asking = asyncio.ensure_future(client.infer("late", {"x": np.array([value])}))
            await until(client, lambda held: held == 1)  # in the model, no longer in the queue
            asking.cancel()
            ended = await quiet(client)
        assert ended == {("late", "cancelled"): 2}
