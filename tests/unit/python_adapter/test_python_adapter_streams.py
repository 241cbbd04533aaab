"""Generators and iterators of user code behind the adapter for Python, and its errors."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from python_files import load, write

from penstock.core.errors import ServableError, Unsupported
from penstock.core.servable import StreamingServable

GENERATOR = """
    closed = []

    @penstock.model(inputs={"x": "i8[]"}, outputs={"y": "i8[]"})
    def count(x):
        try:
            for number in range(int(x)):
                yield number
        finally:
            closed.append(True)
"""


def test_generator_streams_and_closes_when_the_client_leaves(tmp_path: Path) -> None:
    servable = load(write(tmp_path, GENERATOR))
    assert servable.signature.streaming
    assert not servable.signature.batchable
    assert isinstance(servable, StreamingServable)
    answers = servable.answer({"x": np.array(3)}, {})
    assert isinstance(answers, Iterator)
    assert [answer["y"].item() for answer in answers] == [0, 1, 2]
    answers = servable.answer({"x": np.array(1000)}, {})
    next(answers)  # type: ignore[arg-type]  # an iterator, as was asserted
    closed = sys.modules[Path(servable._call.function.__code__.co_filename).stem].closed  # type: ignore[attr-defined]
    assert len(closed) == 1
    answers.close()  # type: ignore[union-attr]  # a generator
    assert len(closed) == 2


def test_plain_request_to_a_stream_needs_exactly_one_answer(tmp_path: Path) -> None:
    servable = load(write(tmp_path, GENERATOR))
    assert servable.predict({"x": np.array(1)}, {})["y"].item() == 0  # type: ignore[index]  # not awaitable
    for count in (0, 2):
        with pytest.raises(Unsupported, match="ask for a stream"):
            servable.predict({"x": np.array(count)}, {})


def test_async_generator_streams_and_closes(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        closed = []

        class Model:
            async def answer(self, inputs, parameters):
                try:
                    for number in range(int(inputs["x"])):
                        yield {"y": number * parameters["step"]}
                finally:
                    closed.append(True)
            def predict(self, inputs):
                return {"y": -1}
        """,
    )
    servable = load(path)
    assert servable.signature.streaming
    assert isinstance(servable, StreamingServable)

    async def read(count: int) -> list[int]:
        answers = servable.answer({"x": np.array(5)}, {"step": 2})
        assert isinstance(answers, AsyncIterator)
        found = []
        async for answer in answers:
            found.append(answer["y"].item())
            if len(found) == count:
                break
        await answers.aclose()  # type: ignore[attr-defined]  # an async generator
        return found

    assert asyncio.run(read(5)) == [0, 2, 4, 6, 8]
    assert asyncio.run(read(2)) == [0, 2]
    assert len(sys.modules[path.stem].closed) == 2
    assert servable.predict({"x": np.array(5)}, {})["y"].item() == -1  # type: ignore[index]  # not awaitable


def test_iterator_of_the_users_own_is_closed_too(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        class Lines:
            closed = 0
            def __iter__(self):
                return self
            def __next__(self):
                return {"y": 1}
            def close(self):
                self.closed += 1

        lines = Lines()

        class Model:
            def answer(self, inputs):
                return lines
        """,
    )
    servable = load(f"{path}:Model")
    assert isinstance(servable, StreamingServable)
    answers = servable.answer({}, {})
    next(answers)  # type: ignore[arg-type]  # an iterator
    answers.close()  # type: ignore[union-attr]  # a generator
    assert sys.modules[path.stem].lines.closed == 1


def test_error_in_user_code_passes_through_unchanged(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        @penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
        def f(x):
            if x[0] < 0:
                raise ValueError("negative")
            return x if x[0] else x.astype(str)
        """,
    )
    servable = load(path)
    with pytest.raises(ValueError, match="negative"):
        servable.predict({"x": -np.ones(1, np.float32)}, {})
    with pytest.raises(ServableError, match="declared is FP32"):
        servable.predict({"x": np.zeros(1, np.float32)}, {})
