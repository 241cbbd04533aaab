"""What requests and answers of the controller's API have in common: strict JSON in, errors out, who may call."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from urllib.parse import urlsplit

import orjson
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from sqlalchemy.exc import OperationalError

from penstock.core.errors import (
    Internal,
    InvalidInput,
    NotFound,
    NotReady,
    PenstockError,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
)
from penstock.core.http_status import error_headers, http_status
from penstock.core.nearest import nearest

log = logging.getLogger("penstock.controller")

LARGEST_BODY = 4 << 20  # a wish with its options; rewards in bulk
_DEEPEST = 64
_DATABASE_RETRY_S = 5.0  # a lock that outlasted our own wait, a server that restarts, a disk that is full


def errors() -> Middleware:
    """A middleware that makes answers of errors."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except PenstockError as error:
            return failed(error)
        except web.HTTPRequestEntityTooLarge:
            return failed(TooLarge(f"the body is above {LARGEST_BODY} bytes"))
        except web.HTTPNotFound:
            return failed(NotFound(f"there is no {request.path[:200]}"))
        except web.HTTPMethodNotAllowed as refused:
            answer = failed(NotFound(f"{request.method} is not possible here; {', '.join(refused.allowed_methods)} is"))
            answer.set_status(405)
            return answer
        except web.HTTPException:
            raise
        except ConnectionError:
            raise
        except OperationalError as error:
            log.error("database_unavailable", extra={"path": request.path[:200], "error": str(error.orig)[:400]})
            told = f"the database does not answer: {str(error.orig)[:200]}; what was asked is not done, ask again"
            return failed(NotReady(told, retry_after_s=_DATABASE_RETRY_S))
        except Exception as error:
            log.exception("request_failed", extra={"path": request.path[:200]})
            return failed(Internal(f"{type(error).__name__}; the controller's log says more"))

    return middleware


def guard(key_digest: bytes | None) -> Middleware:
    """A middleware that lets nobody in but by the key (None: a Unix socket, where the file's mode decides), and no web
    page in any case: a browser names the page's origin, or a host that some attacker made point here."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and urlsplit(origin).netloc != request.headers.get(hdrs.HOST, ""):
            raise PermissionDenied("calls from web pages of other sites are refused")
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise PermissionDenied("calls from web pages of other sites are refused")
        if key_digest is not None and request.path != "/healthz":
            scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(digest(key.strip()), key_digest):
                raise Unauthenticated("the admin port needs its key: Authorization: Bearer KEY")
        return await handler(request)

    return middleware


def digest(key: str) -> bytes:
    """What is compared in place of a key: of one length, whatever was sent."""
    return hmac.digest(b"penstock admin key", key.encode(errors="surrogatepass"), "sha256")


def failed(error: PenstockError) -> web.Response:
    answer = answered({"error": error.message}, http_status(error))
    answer.headers.extend(error_headers(error))
    return answer


def answered(document: object, status: int = 200) -> web.Response:
    return web.Response(
        body=orjson.dumps(document, default=_plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE),
        status=status, content_type="application/json", headers={"Cache-Control": "no-store"},
    )  # fmt: skip


async def document_of(request: web.Request, *, empty: bool = False) -> dict[str, object]:
    """The body as a JSON object. Raises: InvalidInput, TooLarge."""
    body = await request.read()
    if empty and not body.strip():
        return {}
    # A form of a web page cannot send this type without asking first.
    kind = request.content_type
    if kind not in ("application/json", "application/octet-stream"):
        raise InvalidInput(f"the body's type is {kind!r}; send application/json")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput("the body is a JSON object")
    if not _shallow(value, _DEEPEST):
        raise InvalidInput(f"the body is nested deeper than {_DEEPEST}")
    return value


def only(document: Mapping[str, object], allowed: tuple[str, ...]) -> None:
    """Raises: InvalidInput: another key, naming the nearest."""
    for key in document:
        if key not in allowed:
            raise InvalidInput(f"there is no {key[:80]!r}{nearest(key, allowed)}; there are {', '.join(allowed)}")


def number(request: web.Request, name: str, default: float, most: float) -> float:
    """A number in the query, between 0 and `most`. Raises: InvalidInput."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise InvalidInput(f"{name} is {text[:40]!r}; a number between 0 and {most:g}")
    return value


def flag(request: web.Request, name: str) -> bool:
    """Raises: InvalidInput."""
    text = request.query.get(name, "0")
    if text not in ("0", "1", "true", "false"):
        raise InvalidInput(f"{name} is {text[:40]!r}; 0 or 1")
    return text in ("1", "true")


def _shallow(value: object, left: int) -> bool:
    if left == 0:
        return False
    if isinstance(value, dict):
        return all(_shallow(one, left - 1) for one in value.values())
    if isinstance(value, list):
        return all(_shallow(one, left - 1) for one in value)
    return True


def _plain(value: object) -> object:
    if isinstance(value, (tuple, set, frozenset)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)
