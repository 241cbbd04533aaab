from __future__ import annotations

import pytest

from penstock.core import errors
from penstock.core.http_status import error_headers, http_status

TABLE = {
    errors.InvalidInput: 400, errors.TooLarge: 413, errors.Unauthenticated: 401, errors.PermissionDenied: 403,
    errors.NotFound: 404, errors.AlreadyExists: 409, errors.Unsupported: 501, errors.QuotaExceeded: 429,
    errors.Overloaded: 503, errors.NotReady: 503, errors.WorkerLost: 503, errors.DeadlineExceeded: 504,
    errors.Cancelled: 499, errors.ServableError: 500, errors.LoadError: 500, errors.Internal: 500,
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLE)
def test_each_error_has_its_status(kind: type[errors.PenstockError]) -> None:
    assert http_status(kind("why")) == TABLE[kind]


def test_the_table_has_every_error() -> None:
    known = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PenstockError)
    }
    assert set(TABLE) == known - {errors.PenstockError}


def test_a_derived_error_keeps_its_parents_status() -> None:
    class Stranger(errors.NotFound):
        pass

    assert http_status(Stranger("why")) == 404


def test_only_what_may_be_tried_again_says_when() -> None:
    assert ("Retry-After", "2") in error_headers(errors.Overloaded("full", retry_after_s=1.2))
    assert ("Retry-After", "1") in error_headers(errors.QuotaExceeded("yours"))
    assert "Retry-After" not in dict(error_headers(errors.DeadlineExceeded("late")))
    assert ("WWW-Authenticate", "Bearer") in error_headers(errors.Unauthenticated("who"))


def test_the_type_of_an_error_is_in_a_header() -> None:
    assert ("Penstock-Error", "WorkerLost") in error_headers(errors.WorkerLost("died"))
