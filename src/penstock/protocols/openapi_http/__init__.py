"""The OpenAPI 3.1 document of this very server, and a page to try its models in a browser.

The document is made from the routes of every protocol and from the models that answer at the moment. The page is one
file without any foreign part; it reads the document, which needs an API key where one is set.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import re
from collections.abc import Sequence

import orjson

from penstock.core.door import Door
from penstock.core.errors import NotFound, NotReady, PenstockError
from penstock.core.http_status import error_headers, http_status
from penstock.core.json_body import error_json
from penstock.protocols import CallRoute, HttpProtocol, HttpRequest, HttpResponse, Route
from penstock.protocols.openapi_http.document import document


class OpenApiHttp:
    """The routes and their errors. Knows the protocols it was told about; by itself only its own."""

    name = "openapi_http"
    title = "Documentation"

    def __init__(self, protocols: Sequence[HttpProtocol] = ()) -> None:
        self._protocols = protocols

    def describing(self, protocols: Sequence[HttpProtocol]) -> OpenApiHttp:
        """The same routes, about these protocols."""
        return OpenApiHttp(protocols)

    def routes(self) -> Sequence[Route]:
        """Every path. The page is public: it is the same for every server, and what it shows it has to ask for."""
        return [
            CallRoute("GET", "/", self.root, "The page for browsers, a sign of life for others", public=True),
            CallRoute("GET", "/docs", self.page, "A page to try the models", public=True),
            CallRoute("GET", "/openapi.json", self.openapi, "This API as an OpenAPI 3.1 document"),
        ]

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        """`{"error": …}` with the status of `core.http_status`."""
        return HttpResponse(http_status(error), error_json(error), headers=error_headers(error))

    async def openapi(self, http: HttpRequest, door: Door) -> HttpResponse:
        """The document."""
        descriptions = []
        for model in door.models():
            try:
                descriptions.append(door.describe(model))
            except (NotFound, NotReady):  # gone since it was listed
                continue
        return HttpResponse(200, orjson.dumps(document(self._protocols or [self], descriptions)))

    async def root(self, http: HttpRequest, door: Door) -> HttpResponse:
        """KServe's clients look for the status here."""
        if "text/html" in http.header(b"accept"):
            return await self.page(http, door)
        return HttpResponse(200, orjson.dumps({"status": "alive"}), headers=(("Vary", "Accept"),))

    async def page(self, http: HttpRequest, door: Door) -> HttpResponse:
        """The page, allowed to run its own script and to talk to its own server only."""
        text, policy = _page()
        headers = (
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Vary", "Accept"),
        )
        return HttpResponse(200, text, "text/html; charset=utf-8", headers)


@functools.cache
def _page() -> tuple[bytes, str]:
    text = importlib.resources.files(__name__).joinpath("page.html").read_bytes()
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part).digest()).decode()}'"
            for part in re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), text, re.DOTALL)
        )
        for tag in (b"script", b"style")
    }
    policy = (
        f"default-src 'none'; script-src {hashes[b'script']}; style-src {hashes[b'style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


plug = OpenApiHttp()
