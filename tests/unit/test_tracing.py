from __future__ import annotations

import logging

import pytest

from penstock.core.errors import InvalidInput
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


def test_what_was_set_for_a_model_goes_with_it() -> None:
    tracing = Tracing()
    for number in range(1000):
        tracing.settings(f"m{number}", {"trace_level": ["TIMESTAMPS"]})
        tracing.trace(Request(f"m{number}", {}), Response(f"m{number}", "1", {}))
        tracing.keep(["other"])
    assert not tracing.active
    assert tracing.settings("m1", None)["trace_level"] == ["OFF"]
    assert sum(len(held) for held in (tracing._settings, tracing._seen, tracing._left)) == 1, "the global settings"


def test_settings_that_have_no_effect_are_refused() -> None:
    tracing = Tracing()
    assert tracing.settings("", {"log_frequency": "0"})["log_frequency"] == "0"
    for update in ({"log_frequency": "5"}, {"trace_file": "x"}):
        with pytest.raises(InvalidInput):
            tracing.settings("", update)
