"""Open Inference Protocol V2 over HTTP, with Triton's extensions.

`request` and `answer` are the inference call; `generate` its plain-JSON cousins; `models` tells what is here;
`repository` and `settings` change it. Not here: shared memory, which is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.core.compression import ACCEPTED
from penstock.core.errors import PenstockError, Unsupported
from penstock.core.http_status import error_headers, http_status
from penstock.core.json_body import error_json
from penstock.protocols import HttpRequest, HttpResponse, InferRoute, Route
from penstock.protocols.v2_http import generate, models, repository, request, settings
from penstock.protocols.v2_http.schema import INFER


class V2Http:
    """The protocol's routes and its errors."""

    name = "v2_http"
    title = "Open Inference Protocol V2"

    def routes(self) -> Sequence[Route]:
        """Every path of the protocol."""
        infer = [
            InferRoute("POST", f"{path}/infer", request.decode, "Run one inference", INFER, request.example)
            for path in models.PATHS
        ]
        return [*infer, *generate.routes(), *models.routes(), *repository.routes(), *settings.routes()]

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        """`{"error": …}` with the status of `core.http_status`."""
        headers = error_headers(error)
        if isinstance(error, Unsupported) and b"content-encoding" in request.headers:
            headers += (("Accept-Encoding", ACCEPTED),)
        return HttpResponse(http_status(error), error_json(error), headers=headers)


plug = V2Http()
