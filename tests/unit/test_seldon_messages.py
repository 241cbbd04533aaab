"""SeldonMessages as a model's inputs."""

from __future__ import annotations

import pytest

from penstock.core.errors import InvalidInput
from penstock.core.servable import Signature
from penstock.core.tensor import parse_spec
from penstock.graphs import messages

TWO = Signature((parse_spec("a", "f8[n]"), parse_spec("b", "f8[n, 1]")), (), "test", batchable=True)


def test_columns_go_to_the_inputs_of_their_names() -> None:
    message: messages.Message = {"data": {"names": ["b", "a"], "ndarray": [[1, 2], [3, 4]]}}
    found = messages.inputs(message, TWO)
    assert found["a"].tolist() == [2.0, 4.0] and found["b"].tolist() == [[1.0], [3.0]]


@pytest.mark.parametrize(
    ("names", "why"), [(["a", "b", "c"], "3 names, and the data 2 columns"), (["a"], "data.names lacks 'b'")]
)
def test_names_that_do_not_fit_the_columns_are_the_callers_mistake(names: list[str], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        messages.inputs({"data": {"names": names, "ndarray": [[1, 2]]}}, TWO)
