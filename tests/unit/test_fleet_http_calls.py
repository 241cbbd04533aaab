"""What the controller's API answers when something goes wrong beneath it."""

from __future__ import annotations

import json
import sqlite3

from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from sqlalchemy.exc import OperationalError

from penstock.fleet.controller import http_calls


async def test_database_that_does_not_answer_is_no_fault_of_ours_and_may_be_asked_again() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise OperationalError("UPDATE deployments …", {}, sqlite3.OperationalError("database is locked"))

    answer = await http_calls.errors()(make_mocked_request("PUT", "/api/v1/deployments/m"), handler)
    assert isinstance(answer, web.Response)
    assert isinstance(answer.body, bytes)
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "5"
    assert "database is locked" in json.loads(answer.body)["error"]
