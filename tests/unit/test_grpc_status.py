"""Errors as gRPC statuses."""

from __future__ import annotations

import grpc
import pytest

from penstock.core import errors
from penstock.core.errors import PenstockError
from penstock.core.grpc_status import grpc_code, grpc_details, grpc_trailers, http_status_of_code

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PenstockError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_code_and_names_its_type(kind: type[PenstockError]) -> None:
    error = kind("what", retry_after_s=1.5)
    assert hasattr(grpc.StatusCode, grpc_code(error))
    trailers = dict(grpc_trailers(error))
    assert trailers["penstock-error"] == kind.__name__
    pushback = trailers["grpc-retry-pushback-ms"]
    assert pushback == ("-1" if isinstance(error, errors.TooLarge) else "1500")
    assert dict(grpc_trailers(kind("what"))).keys() <= {"penstock-error", "grpc-retry-pushback-ms"}


def test_details_fit_into_a_header() -> None:
    assert len(grpc_details(errors.Internal("x" * 10_000))) <= 4000
    assert len(grpc_details(errors.Internal("é" * 10_000)).encode()) * 3 < 8192


def test_every_code_has_an_http_status() -> None:
    assert {code.name: http_status_of_code(code.name) for code in grpc.StatusCode}["OK"] == 200
    for code in grpc.StatusCode:
        assert 400 <= http_status_of_code(code.name) < 600 or code is grpc.StatusCode.OK
    assert http_status_of_code("something new") == 500
