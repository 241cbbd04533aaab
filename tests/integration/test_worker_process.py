"""Worker processes: real ones, with servables that behave as badly as user code can."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from penstock.core.errors import (
    DeadlineExceeded,
    InvalidInput,
    LoadError,
    PenstockError,
    ServableError,
    WorkerLost,
)
from penstock.core.servable import LoadContext
from penstock.runtime.workers import Batch, BatchResult
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.pool import Pool
from penstock.runtime.workers.process import WorkerProcess

SERVABLES = str(Path(__file__).parent / "servables")


def spec(kind: str, **context: object) -> LoadSpec:
    return LoadSpec(
        "unruly:plug",
        "nowhere",
        LoadContext("m", 3, options={"kind": kind}, **context),  # type: ignore[arg-type]
        {"PYTHONPATH": SERVABLES},
        heartbeat_s=0.05,
    )


class Starter:
    def __init__(self) -> None:
        self.workers: list[WorkerProcess] = []

    async def __call__(self, kind: str, load_timeout_s: float = 20.0, **context: object) -> WorkerProcess:
        worker = await WorkerProcess.start(spec(kind, **context), load_timeout_s=load_timeout_s)
        self.workers.append(worker)
        return worker


@pytest.fixture
async def start() -> AsyncIterator[Starter]:
    starter = Starter()
    yield starter
    for worker in starter.workers:
        worker.kill("the test is over")
        await worker.close(0.0)


def submit(worker: WorkerProcess, batch: Batch) -> asyncio.Future[BatchResult]:
    future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()

    def done(outcome: BatchResult | PenstockError) -> None:
        if isinstance(outcome, PenstockError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    worker.run(batch, done)
    assert not future.done(), "done must be called later"
    return future


def one(x: np.ndarray, **parameters: object) -> Batch:
    return Batch([{"x": x}], len(x), True, parameters=parameters)  # type: ignore[arg-type]


X = np.arange(6, dtype="f4").reshape(2, 3)


async def until(claim: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, "did not become true in time"
        await asyncio.sleep(0.005)


async def test_parts_are_joined_and_padded_with_the_last_row(start: Starter) -> None:
    worker = await start("double")
    result = await submit(worker, Batch([{"x": X}, {"x": X[:1] + 10}], 3, True, pad_rows=2))
    want = np.concatenate([X, X[:1] + 10, X[:1] + 10, X[:1] + 10]) * 2
    np.testing.assert_array_equal(result.outputs["y"], want)
    assert worker.batches == 1
    assert worker.state == "ready"
    assert min(result.compute_input_s, result.compute_infer_s, result.compute_output_s) > 0
    assert worker.rss_bytes > 10 << 20


async def test_strided_inputs_arrive_as_they_are(start: Starter) -> None:
    worker = await start("double")
    x = np.arange(60, dtype="f4").reshape(6, 10)[::2, ::3]
    np.testing.assert_array_equal((await submit(worker, one(x))).outputs["y"], x * 2)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), "f4"), np.zeros((3, 0), "i8"), np.float64(3).reshape(()), np.array([[True, False]]),
        np.arange(4, dtype="f2"), np.arange(4, dtype="u1"), np.arange(200_000, dtype="f8").reshape(2, -1),
        np.array([[b"", b"\x00\xff"], [b"a" * 100_000, b"b"]], dtype=object), np.arange(4, dtype=">i4"),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)  # fmt: skip
async def test_every_kind_of_tensor_comes_back_as_it_went(start: Starter, array: np.ndarray) -> None:
    worker = await start("echo")
    result = await submit(worker, Batch([{"a": array, "b": X}], 1, False))
    np.testing.assert_array_equal(result.outputs["a"], array)
    assert result.outputs["a"].shape == array.shape
    assert result.outputs["a"].dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(result.outputs["b"], X)


async def test_large_results_are_owned_and_areas_grow(start: Starter) -> None:
    worker = await start("double")
    kept = []
    for rows in (1, 40_000, 10, 400_000, 5_000_000, 40_000):
        x = np.full((rows, 2), float(rows), "f4")
        kept.append((rows, (await submit(worker, one(x))).outputs["y"]))
    for rows, y in kept:  # no later batch has written into an earlier one's result
        assert y.shape == (rows, 2)
        assert (y == 2.0 * rows).all()


async def test_ten_thousand_batches_never_mix_answers(start: Starter) -> None:
    worker = await start("double")
    random = np.random.default_rng(7)
    finished = asyncio.get_running_loop().create_future()
    count = 10_000

    def send(number: int) -> None:
        if number == count:
            finished.set_result(None)
            return
        width = 20_000 if number % 50 == 0 else int(random.integers(1, 100))
        parts = [np.full((int(random.integers(1, 4)), width), float(number + row), "f4") for row in range(3)]
        want = np.concatenate(parts) * 2

        def done(outcome: BatchResult | PenstockError) -> None:
            if not isinstance(outcome, BatchResult) or not np.array_equal(outcome.outputs["y"], want):
                finished.set_exception(AssertionError(f"batch {number}: {outcome}"))
            else:
                send(number + 1)

        worker.run(Batch([{"x": part} for part in parts], len(want), True), done)

    send(0)
    await finished
    assert worker.batches == count


@pytest.mark.parametrize(
    ("do", "kind", "text"),
    [
        ("raise", ServableError, "ValueError: the sky is green"),
        ("invalid", InvalidInput, "x must be small"),
        ("system_exit", ServableError, "SystemExit: 3"),
        ("interrupt", ServableError, "KeyboardInterrupt"),
        ("none", ServableError, "returned NoneType"),
        ("missing", ServableError, "did not return the output 'y', only \\['z'\\]"),
        ("rows", ServableError, "shape \\[1, 3\\], the batch has 2 rows"),
        ("text", ServableError, "declared is FP32"),
        ("write", ServableError, "read-only"),
    ],
)
async def test_a_batch_fails_with_what_user_code_did_and_the_worker_lives(
    start: Starter, do: str, kind: type[PenstockError], text: str
) -> None:
    worker = await start("obedient")
    with pytest.raises(kind, match=text):
        await submit(worker, one(X, do=do))
    assert worker.free_slots == 1
    np.testing.assert_array_equal((await submit(worker, one(X))).outputs["y"], X * 2)


async def test_outputs_of_a_wider_type_are_narrowed_to_the_declared_one(start: Starter) -> None:
    worker = await start("obedient")
    assert (await submit(worker, one(X, do="float64"))).outputs["y"].dtype == np.float32


async def test_the_traceback_of_user_code_is_logged(start: Starter, caplog: pytest.LogCaptureFixture) -> None:
    worker = await start("obedient")
    with pytest.raises(ServableError):
        await submit(worker, one(X, do="raise"))
    record = next(record for record in caplog.records if record.getMessage() == "model_error")
    trace = record.trace  # type: ignore[attr-defined]
    assert "the sky is green" in trace and "in predict" in trace
    assert (record.model, record.version, record.pid) == ("m", 3, worker.pid)  # type: ignore[attr-defined]


async def test_a_batch_that_is_late_on_arrival_does_not_reach_user_code(start: Starter) -> None:
    worker = await start("obedient")
    batch = one(X, do="exit")
    batch.deadline = time.monotonic() - 1
    with pytest.raises(DeadlineExceeded):
        await submit(worker, batch)
    assert worker.state == "ready"


async def test_parameters_that_cannot_cross_blame_the_caller(start: Starter) -> None:
    worker = await start("double")
    for bad in (1 << 70, "\ud800", object()):
        with pytest.raises(InvalidInput):
            await submit(worker, one(X, p=bad))
    assert worker.free_slots == 1


async def test_large_parameters_cross_beside_any_payload(start: Starter) -> None:
    worker = await start("double")
    for rows in (1, 100_000):
        x = np.ones((rows, 3), "f4")
        result = await submit(worker, one(x, text="t" * 300_000))
        assert (result.outputs["y"] == 2).all()


async def test_as_many_rows_as_parts_may_be_many(start: Starter) -> None:
    worker = await start("double")
    parts = [{"x": np.full((1, 1), float(number), "f4")} for number in range(3000)]
    result = await submit(worker, Batch(parts, 3000, True))
    np.testing.assert_array_equal(result.outputs["y"][:, 0], np.arange(3000) * 2.0)


# Ends


@pytest.mark.parametrize(
    ("do", "cause"), [("segfault", "SIGSEGV"), ("exit", "exited with code 7")]
)  # fmt: skip
async def test_a_crash_in_user_code_fails_its_batch_as_worker_lost(start: Starter, do: str, cause: str) -> None:
    worker = await start("obedient")
    with pytest.raises(WorkerLost, match=cause):
        await submit(worker, one(X, do=do))
    assert worker.state == "gone"
    assert worker.free_slots == 0


async def test_a_killed_worker_is_noticed_within_100_ms_and_reaped(start: Starter) -> None:
    worker = await start("obedient")
    exits: list[str] = []
    worker.on_exit(lambda: exits.append("exit"))
    future = submit(worker, one(X, do="sleep", s=100))
    await asyncio.sleep(0.05)
    killed = time.monotonic()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="SIGKILL"):
        await future
    assert time.monotonic() - killed < 0.1
    await until(lambda: exits == ["exit"])
    assert not _exists(worker.pid), "a zombie is left"
    assert worker.rss_bytes == 0
    with pytest.raises(WorkerLost):
        await submit(worker, one(X))
    worker.on_exit(lambda: exits.append("again"))
    await until(lambda: exits == ["exit", "again"])


async def test_what_a_worker_forked_goes_with_it_and_does_not_hide_its_end(start: Starter) -> None:
    worker = await start("obedient")
    with pytest.raises(WorkerLost, match="exited with code 0"):
        await submit(worker, one(X, do="grandchild"))
    await until(lambda: not _group_members(worker.pid))


def _group_members(group: int) -> list[int]:
    members = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] not in "ZX":
                members.append(int(entry))
    return members


async def test_workers_die_with_their_front_even_inside_user_code(tmp_path: Path) -> None:
    program = tmp_path / "front.py"
    program.write_text(
        "import asyncio, sys, numpy as np\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_worker_process import spec, one, X, submit\n"
        "from penstock.runtime.workers.process import WorkerProcess\n"
        "async def main():\n"
        "    worker = await WorkerProcess.start(spec('obedient'))\n"
        "    held = submit(worker, one(X, do='hold_lock'))\n"
        "    print(worker.pid, flush=True)\n"
        "    await held\n"
        "asyncio.run(main())\n"
    )
    front = await asyncio.create_subprocess_exec(sys.executable, str(program), stdout=asyncio.subprocess.PIPE)
    assert front.stdout is not None
    pid = int(await front.stdout.readline())
    front.kill()
    await front.wait()
    await until(lambda: not _alive(pid))


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_signals_of_a_terminal_or_service_manager_leave_workers_alone(start: Starter) -> None:
    worker = await start("obedient")
    future = submit(worker, one(X, do="sleep", s=0.2))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.pid, number)
    np.testing.assert_array_equal((await future).outputs["y"], X * 2)
    assert os.getpgid(worker.pid) != os.getpgid(0)


# Stuck


@pytest.mark.parametrize("how", ["stop", "hold_lock"])
async def test_silence_grows_while_the_process_does_not_run(start: Starter, how: str) -> None:
    worker = await start("obedient")
    future = submit(worker, one(X, do="hold_lock" if how == "hold_lock" else "sleep", s=100))
    if how == "stop":
        os.kill(worker.pid, signal.SIGSTOP)
    await until(lambda: worker.silence_s(time.monotonic()) > 0.4)
    worker.kill()
    with pytest.raises(WorkerLost, match="stuck"):
        await future


async def test_an_endless_loop_is_not_silent_but_overdue(start: Starter) -> None:
    worker = await start("obedient")
    batch = one(X, do="spin")
    batch.deadline = time.monotonic() + 0.2
    future = submit(worker, batch)
    assert worker.overdue_s(time.monotonic(), 0.0) <= 0
    silences: list[float] = []

    def overdue() -> bool:
        silences.append(worker.silence_s(time.monotonic()))
        return worker.overdue_s(time.monotonic(), 0.0) > 0.3

    await until(overdue)
    assert max(silences) < 0.4
    worker.kill()
    with pytest.raises(WorkerLost):
        await future


async def test_a_front_that_was_stopped_itself_does_not_blame_the_worker(start: Starter) -> None:
    worker = await start("double")
    now = time.monotonic()
    worker.silence_s(now)
    assert worker.silence_s(now + 3600) <= 2.0


async def test_stacks_are_logged_while_native_code_holds_the_lock(
    start: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await start("obedient")
    future = submit(worker, one(X, do="hold_lock"))
    await until(lambda: worker.silence_s(time.monotonic()) > 0.2)
    worker.dump_stacks()
    await until(lambda: any("in predict" in record.getMessage() for record in caplog.records))
    worker.kill()
    with pytest.raises(WorkerLost):
        await future


# Loading


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("load_error", "^no such layer$"),
        ("load_raise", "KeyError: 'weights'"),
        ("load_exit", "SystemExit: 5"),
        ("load_death", "SIGSEGV(.|\n)*about to go"),
    ],
)
async def test_a_failed_load_says_why_and_leaves_nothing(kind: str, text: str) -> None:
    before = _resources()
    with pytest.raises(LoadError, match=text):
        await WorkerProcess.start(spec(kind))
    assert _resources() == before


async def test_a_load_that_hangs_is_killed_when_its_time_is_up() -> None:
    began = time.monotonic()
    with pytest.raises(LoadError, match=r"did not load within 0\.6 s"):
        await WorkerProcess.start(spec("load_hang"), load_timeout_s=0.6)
    assert time.monotonic() - began < 2.0


async def test_cancelling_a_start_leaves_nothing() -> None:
    before = _resources()
    task = asyncio.create_task(WorkerProcess.start(spec("load_hang")))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _resources() == before


async def test_unknown_plugs_and_interpreters_are_load_errors() -> None:
    with pytest.raises(LoadError, match="no plug 'nonsense'"):
        await WorkerProcess.start(LoadSpec("nonsense", ".", LoadContext("m", 1)))
    with pytest.raises(LoadError, match="cannot start a worker process"):
        await WorkerProcess.start(spec("double"), python="/no/such/python")


async def test_thread_counts_reach_the_environment(start: Starter) -> None:
    worker = await start("obedient", threads=3)
    assert (await submit(worker, one(X, do="threads"))).outputs["y"][0, 0] == 3


async def test_secrets_of_the_server_do_not_reach_user_code(start: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEY", "secret")
    worker = await start("double")
    environment = await asyncio.to_thread(Path(f"/proc/{worker.pid}/environ").read_bytes)
    assert b"PATH" in environment
    assert b"PENSTOCK_" not in environment


# Closing


async def test_close_lets_the_worker_finish_what_it_holds(start: Starter, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    worker = await start("obedient")
    future = submit(worker, one(X, do="sleep", s=0.2))
    await worker.close(5.0)
    np.testing.assert_array_equal((await future).outputs["y"], X * 2)
    assert worker.exited
    assert any(record.getMessage() == "closed" for record in caplog.records), "the servable was not closed"


async def test_close_kills_what_does_not_finish_within_the_grace(start: Starter) -> None:
    worker = await start("obedient")
    future = submit(worker, one(X, do="sleep", s=100))
    began = time.monotonic()
    await worker.close(0.2)
    assert time.monotonic() - began < 1.0
    with pytest.raises(WorkerLost, match="time to finish"):
        await future


def _resources() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()


async def test_cycles_of_start_and_close_leave_no_descriptor_and_no_thread() -> None:
    async def cycle() -> None:
        worker = await WorkerProcess.start(spec("streamer"))
        await submit(worker, Batch([{"x": np.ones((1, 50_000), "f4")}], 1, False))
        async for _ in worker.stream({"x": X}, {"n": 3, "width": 50_000}):
            pass
        await worker.close(5.0)

    await cycle()
    before = _resources()
    for _ in range(50):
        await cycle()
    assert _resources() == before


# Output of user code


async def test_printed_lines_are_logged_bounded_in_length_and_number(
    start: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="penstock.worker")
    worker = await start("obedient")
    await submit(worker, one(X, do="print", lines=2, width=100_000))
    await submit(worker, one(X, do="print", lines=5000))
    await worker.close(5.0)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("line ")]
    assert lines[0].startswith("line 0 xxx")
    assert max(len(line) for line in lines) <= 4096
    assert 400 < len(lines) < 1500


# Streams


async def test_a_stream_yields_every_item_in_order_and_frees_its_slot(start: Starter) -> None:
    for kind in ("streamer", "async_streamer"):
        worker = await start(kind)
        slots = worker.free_slots
        for width in (1, 50_000):  # inline, and through shared memory
            stream = worker.stream({"x": X}, {"n": 20, "width": width})
            assert worker.free_slots == slots - 1
            kept = [item["y"] async for item in stream]
            assert [float(y[0, 0]) for y in kept] == list(range(20))
            assert all((y == y[0, 0]).all() for y in kept), "a later item overwrote an earlier one"
            assert worker.free_slots == slots


async def test_a_model_without_streams_yields_its_one_answer(start: Starter) -> None:
    worker = await start("double")
    items = [item async for item in worker.stream({"x": X}, {})]
    assert len(items) == 1
    np.testing.assert_array_equal(items[0]["y"], X * 2)


@pytest.mark.parametrize("kind", ["streamer", "async_streamer"])
@pytest.mark.parametrize("width", [1, 50_000])
async def test_closing_a_stream_stops_the_model_within_one_item_of_the_window(
    start: Starter, tmp_path: Path, kind: str, width: int
) -> None:
    worker = await start(kind)
    freed = []
    worker.on_free(lambda: freed.append(True))
    log = tmp_path / "made"
    stream = worker.stream({"x": X}, {"n": 10_000, "width": width, "log": str(log)})
    await anext(stream)
    await stream.aclose()
    await until(log.exists)
    await until(lambda: log.read_text() != "")
    assert int(log.read_text()) <= 7  # taken, the window of 4, one ready to be sent, one in the making
    await until(lambda: bool(freed))
    assert worker.free_slots == worker.signature.concurrency
    assert [item async for item in stream] == []


async def test_letting_go_of_a_stream_stops_the_model(start: Starter, tmp_path: Path) -> None:
    worker = await start("streamer")
    stream = worker.stream({"x": X}, {"n": 10_000, "log": str(tmp_path / "made")})
    await anext(stream)
    del stream
    gc.collect()
    await until(lambda: worker.free_slots == 1)


@pytest.mark.parametrize("kind", ["streamer", "async_streamer"])
async def test_a_slow_reader_holds_the_model_back(start: Starter, tmp_path: Path, kind: str) -> None:
    worker = await start(kind)
    log = tmp_path / "made"
    stream = worker.stream({"x": X}, {"n": 1000, "log": str(log)})
    await anext(stream)
    await asyncio.sleep(0.3)  # time in which an unbounded model would make all of them
    assert not log.exists()
    await stream.aclose()
    await until(lambda: log.exists() and log.read_text() != "")
    assert int(log.read_text()) <= 7


@pytest.mark.parametrize("kind", ["streamer", "async_streamer"])
async def test_an_error_in_a_stream_is_raised_after_the_items_before_it(start: Starter, kind: str) -> None:
    worker = await start(kind)
    got = []
    with pytest.raises(ServableError, match="lost the thread"):
        async for item in worker.stream({"x": X}, {"n": 10, "raise_after": 3}):
            got.append(float(item["y"][0, 0]))  # noqa: PERF401  # what came before the error counts
    assert got == [0, 1, 2]
    assert worker.free_slots == worker.signature.concurrency


async def test_the_death_of_the_worker_breaks_its_streams_with_an_error(start: Starter) -> None:
    worker = await start("streamer")
    got = []
    with pytest.raises(WorkerLost, match="SIGKILL"):
        async for item in worker.stream({"x": X}, {"n": 10, "die_after": 2}):
            got.append(float(item["y"][0, 0]))  # noqa: PERF401  # what came before the error counts
    assert got == [0, 1]


@pytest.mark.parametrize("kind", ["streamer", "async_streamer"])
async def test_a_stream_beyond_its_deadline_ends_with_an_error(start: Starter, kind: str) -> None:
    worker = await start(kind)
    with pytest.raises(DeadlineExceeded):
        async for _ in worker.stream({"x": X}, {"n": 1_000_000}, time.monotonic() + 0.2):
            pass
    await until(lambda: worker.free_slots == worker.signature.concurrency)


# Servables that are asyncio code


async def test_asyncio_models_hold_as_many_batches_as_they_declare(start: Starter) -> None:
    worker = await start("together")
    assert worker.free_slots == 8
    inputs = [np.full((1, 20_000 if number % 2 else 3), float(number), "f4") for number in range(8)]
    futures = [submit(worker, one(x, n=8)) for x in inputs]
    assert worker.free_slots == 0
    for x, result in zip(inputs, await asyncio.gather(*futures), strict=True):
        np.testing.assert_array_equal(result.outputs["y"], x * 2)
    assert worker.free_slots == 8


async def test_an_asyncio_batch_beyond_its_deadline_is_cancelled(start: Starter) -> None:
    worker = await start("together")
    batch = one(X, n=2)
    batch.deadline = time.monotonic() + 0.2
    with pytest.raises(DeadlineExceeded):
        await submit(worker, batch)
    assert worker.free_slots == 8


async def test_an_asyncio_batch_that_is_abandoned_before_it_begins_is_answered_too(start: Starter) -> None:
    worker = await start("together")
    for _ in range(50):
        future: asyncio.Future[BatchResult | PenstockError] = asyncio.get_running_loop().create_future()
        worker.abandon(worker.run(one(X, n=1), future.set_result))
        async with asyncio.timeout(10.0):
            await future
    assert worker.free_slots == 8


async def test_an_asyncio_error_fails_its_batch_alone(start: Starter) -> None:
    worker = await start("together")
    good, bad = submit(worker, one(X, n=2)), submit(worker, one(X, n=2, do="raise"))
    with pytest.raises(ServableError, match="async and wrong"):
        await bad
    np.testing.assert_array_equal((await good).outputs["y"], X * 2)
    await worker.close(5.0)


async def test_a_coroutine_predict_is_awaited(start: Starter) -> None:
    worker = await start("coroutine")
    np.testing.assert_array_equal((await submit(worker, one(X))).outputs["y"], X * 2)
    await worker.close(5.0)
    assert worker.cause == "it exited with code 0"


async def test_the_death_of_an_asyncio_worker_fails_all_it_holds(start: Starter) -> None:
    worker = await start("together")
    futures = [submit(worker, one(X, n=9)) for _ in range(8)]
    os.kill(worker.pid, signal.SIGKILL)
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [WorkerLost] * 8


# Trouble between the two


async def test_a_worker_that_sends_garbage_is_ended(start: Starter) -> None:
    worker = await start("obedient")
    with pytest.raises(WorkerLost, match="cannot be read"):
        await submit(worker, one(X, do="garbage"))


async def test_a_worker_that_closes_its_end_is_ended(start: Starter) -> None:
    worker = await start("obedient")
    with pytest.raises(WorkerLost, match=r"closed its connection|exited with code 1"):
        await submit(worker, one(X, do="hang_up"))


async def test_without_descriptors_a_start_fails_cleanly() -> None:
    before = _resources()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = [os.open("/dev/null", os.O_RDONLY)]
    while fillers[-1] < highest:
        fillers.append(os.dup(fillers[0]))
    highest = max(highest, fillers[-1])
    outcomes = []
    try:
        for more in range(24):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, limits[1]))
            try:
                worker = await WorkerProcess.start(spec("double"))
            except LoadError as error:
                outcomes.append(str(error))
            else:
                outcomes.append("")
                await worker.close(5.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for filler in fillers:
            os.close(filler)
    assert outcomes[0] != ""
    assert outcomes[-1] == ""
    assert all("Too many open files" in outcome for outcome in outcomes if outcome)
    assert _resources() == before


async def test_a_worker_that_is_needed_no_more_ends_what_it_holds_within_its_callers_deadline() -> None:
    pool = Pool(lambda _: spec("obedient"), 1, load_timeout_s=20.0, timeout_s=0.1, hang_s=0.3, on_change=lambda: None)
    try:
        await pool.start()
        pool._resize(2)
        await until(lambda: len(pool.workers) == 2, 20)
        batch = one(X, do="sleep", s=1.5)
        batch.deadline = time.monotonic() + 20
        answer = submit(pool.workers[1], batch)
        pool._resize(1)
        assert len(pool.workers) == 1
        assert (await answer).outputs
    finally:
        await pool.close(1.0)
