"""The OpenAPI 3.1 document of this very server, and a page to try its models in a browser.

The document is made from the routes of every protocol and from the models that answer at the moment. The page is one
file without any foreign part; it reads the document, which needs an API key where one is set.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from penstock.core.door import Door
from penstock.core.errors import NotFound, NotReady, PenstockError
from penstock.core.http_status import error_headers, http_status
from penstock.core.json_body import error_json
from penstock.core.language import KIND
from penstock.core.page import page
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
        """KServe's clients look for the status here; browsers find the playground where there is a language model."""
        if "text/html" in http.header(b"accept"):
            if any(_language(door, model) for model in door.models()):
                return HttpResponse(307, headers=(("Location", "/playground"), ("Vary", "Accept")))
            return await self.page(http, door)
        return HttpResponse(200, orjson.dumps({"status": "alive"}), headers=(("Vary", "Accept"),))

    async def page(self, http: HttpRequest, door: Door) -> HttpResponse:
        """The page, allowed to run its own script and to talk to its own server only."""
        text, headers = page(__name__)
        return HttpResponse(200, text, "text/html; charset=utf-8", headers)


def _language(door: Door, model: str) -> bool:
    try:
        return KIND in door.signature(model).metadata
    except (NotFound, NotReady):  # gone since it was listed
        return False


plug = OpenApiHttp()
