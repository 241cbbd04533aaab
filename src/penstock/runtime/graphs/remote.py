"""Other endpoints and servers over HTTP, with connections that are kept.

Where endpoints are is `PENSTOCK_ENDPOINTS_URL`, and the key for them `PENSTOCK_ENDPOINTS_KEY`. The key goes to that
address only, never to the `url` of a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from penstock.core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    NotReady,
    PenstockError,
    PermissionDenied,
    QuotaExceeded,
    ServableError,
    TooLarge,
    Unauthenticated,
    Unsupported,
    WorkerLost,
    rebuild,
)
from penstock.core.servable import Signature
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec
from penstock.graphs import v2_wire
from penstock.runtime.graphs.journey import Journey

if TYPE_CHECKING:
    import aiohttp

_LARGEST_BYTES = 1 << 28  # of an answer
_CONNECTIONS = 256  # open at once, of all steps of one graph; more wait for one
_IDLE_S = 30.0  # less than servers keep idle connections, so that few are closed under a request
_BY_STATUS: Mapping[int, type[PenstockError]] = {
    400: InvalidInput, 401: Unauthenticated, 403: PermissionDenied, 404: NotFound, 413: TooLarge, 422: InvalidInput,
    429: QuotaExceeded, 501: Unsupported, 502: NotReady, 503: NotReady, 504: DeadlineExceeded,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came. `headers` are those that matter: content type, header length, the error's type."""

    status: int
    body: bytes
    content_type: str = "application/json"
    header_length: str = ""
    error: str = ""

    @property
    def success(self) -> bool:
        """Whether the status is one of the 2xx."""
        return 200 <= self.status < 300


class Remote:
    """The other endpoints of one graph. Opens nothing before the first call; closed by its owner."""

    def __init__(self, endpoints_url: str = "", endpoints_key: str = "") -> None:
        self.endpoints_url = endpoints_url.rstrip("/")
        self._key = endpoints_key
        self._session: aiohttp.ClientSession | None = None
        self._signatures: dict[str, Signature] = {}

    def address(self, endpoint: str, version: str = "") -> str:
        """Where an endpoint's model is, without a verb behind it. Raises: InvalidInput when nobody said where."""
        if not self.endpoints_url:
            raise InvalidInput(
                f"endpoint '{endpoint}' is elsewhere, and PENSTOCK_ENDPOINTS_URL does not say where; set it, or give "
                "the step a url"
            )
        place = f"{self.endpoints_url}/v2/models/{quote(endpoint, safe='')}"
        return f"{place}/versions/{quote(version, safe='')}" if version else place

    async def post(
        self,
        url: str,
        body: bytes,
        journey: Journey,
        headers: Mapping[str, str],
        method: str = "POST",
        *,
        keyed: bool = False,
    ) -> Reply:
        """The answer, whatever its status. `keyed` is for what `address` gave: it gets the key for other endpoints.

        Raises:
            DeadlineExceeded, NotReady (no connection), WorkerLost (it broke), Internal (too large an answer).
        """
        import aiohttp

        left_s = journey.deadline - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before it was asked")
        sent = {"Accept": "*/*", **journey.headers, **headers}
        if journey.trace is not None:
            sent.update(journey.trace.headers())
        if left_s < math.inf:
            sent["Penstock-Timeout-Ms"] = str(max(1, math.ceil(left_s * 1000)))
        if self._key and keyed:
            sent["Authorization"] = f"Bearer {self._key}"
        timeout = aiohttp.ClientTimeout(total=None if left_s == math.inf else left_s)
        try:
            async with self._open().request(
                method, url, data=body, headers=sent, timeout=timeout, allow_redirects=False
            ) as answer:
                content = bytearray()
                async for part in answer.content.iter_any():
                    content += part
                    if len(content) > _LARGEST_BYTES:
                        raise Internal(f"its answer has more than {_LARGEST_BYTES} bytes")
                return Reply(
                    answer.status,
                    bytes(content),
                    answer.headers.get("Content-Type", "application/json"),
                    answer.headers.get(v2_wire.HEADER_LENGTH, ""),
                    answer.headers.get("Penstock-Error", ""),
                )
        except TimeoutError:
            raise DeadlineExceeded("no answer in time") from None
        except aiohttp.ClientConnectorError as error:
            raise NotReady(f"cannot connect: {error.strerror or error}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WorkerLost(
                f"the connection broke before the answer was there: {error or type(error).__name__}"
            ) from None

    async def infer(self, url: str, inputs: Mapping[str, Array], journey: Journey, *, keyed: bool) -> dict[str, Array]:
        """The outputs of a V2 infer call. Raises: what the other end says, and as `post`."""
        body, headers = v2_wire.request(inputs, journey.parameters)
        reply = await self.post(url, body, journey, headers, keyed=keyed)
        if not reply.success:
            raise error_of(reply)
        return v2_wire.answer(reply.body, reply.header_length)

    async def signature(self, url: str, journey: Journey) -> Signature:
        """What the model at `url`, which `address` gave, says of itself; asked once. Raises: as `infer`."""
        known = self._signatures.get(url)
        if known is None:
            reply = await self.post(url, b"", journey, {}, "GET", keyed=True)
            if not reply.success:
                raise error_of(reply)
            known = self._signatures[url] = _signature(reply.body)
        return known

    def forget(self, url: str) -> None:
        """Asks for the signature anew next time: the model may have been replaced by one of other types."""
        self._signatures.pop(url, None)

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=_IDLE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=True,
            )
        return self._session


def error_of(reply: Reply) -> PenstockError:
    """The error that a failed answer says."""
    message = v2_wire.problem(reply.body) or f"it answered {reply.status}"
    if reply.error:
        return rebuild(reply.error, message)
    return _BY_STATUS.get(reply.status, ServableError)(message)


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Metadata(msgspec.Struct):
    inputs: list[_Tensor] = []
    outputs: list[_Tensor] = []


def _signature(body: bytes) -> Signature:
    try:
        metadata = msgspec.json.decode(body, type=_Metadata)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Internal(f"its metadata cannot be read: {error}") from None
    inputs, outputs = (
        tuple(TensorSpec(each.name, each.datatype, tuple(each.shape)) for each in some if each.datatype in NUMPY_OF)
        for some in (metadata.inputs, metadata.outputs)
    )
    return Signature(inputs, outputs, "remote", batchable=False)
