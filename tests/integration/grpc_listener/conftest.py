"""A gRPC listener and a client of it, for each test that asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tritonclient.grpc as triton
from grpc_serving import Serving, serving


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving() as running:
        yield running


@pytest.fixture
def client(served: Serving) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.address) as made:
        yield made
