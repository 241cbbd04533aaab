from __future__ import annotations

import logging

import pytest

from penstock.core.messages import Request, Response
from penstock.runtime.tracing import Tracing


@pytest.mark.parametrize("model", ["", "m"])
def test_a_new_count_is_counted_from_the_start(model: str, caplog: pytest.LogCaptureFixture) -> None:
    tracing = Tracing()

    def traced() -> int:
        caplog.clear()
        with caplog.at_level(logging.INFO, "penstock.trace"):
            for _ in range(5):
                tracing.trace(Request("m", {}), Response("m", "1", {}))
        return len(caplog.records)

    tracing.settings("", {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "1"})
    assert traced() == 1
    assert traced() == 0
    tracing.settings(model, {"trace_count": "2"})
    assert traced() == 2
