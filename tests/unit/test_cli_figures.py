"""Percentiles, and how values look."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.bench import percentile, summary
from penstock.cli.flags import shown
from penstock.cli.load import Tally
from penstock.cli.models import quantile
from penstock.cli.output import print_table
from penstock.cli.predict import table
from penstock.cli.status_view import number
from penstock.config import Layer, options_of, resolve
from penstock.runtime.options import ModelOptions, ServerOptions


def test_percentiles_are_by_nearest_rank() -> None:
    ordered = [1.0, 2.0, 3.0, 4.0]
    assert [percentile(ordered, share) for share in (0.0, 0.25, 0.5, 0.51, 1.0)] == [1, 1, 2, 3, 4]


@given(st.lists(st.floats(min_value=0, max_value=10), min_size=1), st.floats(min_value=0, max_value=1))
def test_a_percentile_is_a_measured_value_that_enough_others_do_not_exceed(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered) - 1e-9


def test_a_run_without_answers_has_no_percentiles() -> None:
    tally = Tally(seconds=1.0)
    tally.fail("status 503")
    figures = summary(tally, 1, 1)
    assert figures["errors"] == 1 and figures["error: status 503"] == 1
    assert not any(name.startswith("p") for name in figures)


def test_the_server_s_times_are_averaged_in_milliseconds() -> None:
    tally = Tally(latencies_s=[0.01], seconds=1.0)
    tally.server_timing("queue;dur=1.0, compute;dur=3")
    tally.server_timing("queue;dur=2.0")
    figures = summary(tally, 1, 1)
    assert figures["server queue ms (mean)"] == 1.5
    assert figures["server compute ms (mean)"] == 3.0


def test_a_histogram_s_quantile_lies_in_its_bucket() -> None:
    buckets = [(0.1, 50.0), (0.2, 100.0), (math.inf, 100.0)]
    assert quantile(buckets, 0.5) == pytest.approx(0.1)
    assert quantile(buckets, 0.75) == pytest.approx(0.15)
    assert quantile([(0.1, 0.0), (math.inf, 5.0)], 0.5) == 0.1  # beyond the last finite bound nothing is known
    assert quantile([(0.1, 0.0), (math.inf, 0.0)], 0.5) is None
    assert quantile([], 0.5) is None


@pytest.mark.parametrize("kind", [ServerOptions, ModelOptions])
def test_a_value_that_is_shown_can_be_given_back(kind: type) -> None:
    for name, option in options_of(kind).items():
        text = shown(option, option.default)
        if text:
            assert getattr(resolve(kind, [Layer("flag", {name: text})]).value, name) == option.default


def test_a_secret_is_never_shown() -> None:
    assert shown(options_of(ServerOptions)["api_key"], "hunter2") == "…"


def test_outputs_of_one_length_stand_side_by_side_and_large_ones_are_named_by_shape() -> None:
    long = np.zeros((2, 100), "f4")
    assert table({"y": np.array([1, 2]), "z": long}) == [{"y": "1", "z": "FP32[100]"}, {"y": "2", "z": "FP32[100]"}]
    assert table({"y": np.array([1, 2]), "z": np.array([0.5])}) == [{"y": "1 2", "z": "0.5"}]
    assert table({"y": np.array([b"a"], dtype=object)}) == [{"y": "a"}]


def test_cells_off_a_terminal_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"a": 1, "reason": "it ended\nthe last\tline"}])
    assert capsys.readouterr().out == "a\treason\n1\tit ended; the last line\n"


def test_large_figures_are_no_powers_of_ten() -> None:
    assert [number(one) for one in (None, 0.4834, 5.12, 99.94, 3613.4)] == ["", "0.483", "5.12", "99.9", "3613"]
