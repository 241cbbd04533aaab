"""A page to talk with the server's language models: chat and completion, one model or two side by side.

The page is one file without any foreign part. It speaks OpenAI's protocol with this very server, as any client does.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.core.door import Door
from penstock.core.errors import PenstockError
from penstock.core.http_status import error_headers, http_status
from penstock.core.json_body import error_json
from penstock.core.page import page
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, Route


class PlaygroundHttp:
    """The route and its errors."""

    name = "playground_http"
    title = "Playground"

    def routes(self) -> Sequence[Route]:
        """Public: the page is the same for every server, and what it shows it has to ask for."""
        return [CallRoute("GET", "/playground", self.page, "A page to talk with language models", public=True)]

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        """`{"error": …}` with the status of `core.http_status`."""
        return HttpResponse(http_status(error), error_json(error), headers=error_headers(error))

    async def page(self, http: HttpRequest, door: Door) -> HttpResponse:
        """The page."""
        text, headers = page(__name__)
        return HttpResponse(200, text, "text/html; charset=utf-8", headers)


plug = PlaygroundHttp()
