"""The playground's page: whole in itself, and allowed to do nothing else."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from penstock.protocols import CallRoute, HttpRequest, HttpResponse
from penstock.protocols.playground_http import plug


@pytest.fixture
async def page() -> HttpResponse:
    (route,) = plug.routes()
    assert isinstance(route, CallRoute)
    assert (route.pattern, route.public) == ("/playground", True)
    found = await route.handle(HttpRequest("GET", "/playground", {}), None)  # type: ignore[arg-type]  # it asks nobody
    assert isinstance(found, HttpResponse)
    return found


async def test_nothing_is_fetched_from_elsewhere(page: HttpResponse) -> None:
    text = bytes(page.body).decode()  # type: ignore[arg-type]  # one part
    assert re.findall(r"""(?:src|href)=["'](?!data:|/)""", text) == []
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"""\son\w+=["']""", text), "an inline handler would not be allowed to run"


async def test_only_its_own_script_may_run_and_only_its_own_server_be_asked(page: HttpResponse) -> None:
    policy = dict(page.headers)["Content-Security-Policy"]
    (script,) = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)  # type: ignore[arg-type]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" in policy
    for part in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "form-action 'none'"):
        assert part in policy
    assert "unsafe" not in policy
