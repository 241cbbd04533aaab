"""`/v1/files`: the files of batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar
from urllib.parse import parse_qsl

import orjson

from penstock.core.batches import StoredFile
from penstock.core.door import Door
from penstock.core.errors import AlreadyExists, InvalidInput, NotFound
from penstock.protocols import HttpRequest, HttpResponse
from penstock.protocols.openai_http.failures import request_id
from penstock.protocols.openai_http.multipart import Part, read_form

T = TypeVar("T")

_LONGEST_NAME: Final = 255
KEEP_S: Final = (3600, 30 * 24 * 3600)  # OpenAI's range of `expires_after`
_MOST_PAGE: Final = 10_000


async def upload(http: HttpRequest, door: Door) -> HttpResponse:
    """The file, kept."""
    body, http.body = http.body, b""
    if http.header(b"content-encoding", "identity").lower() != "identity":
        raise InvalidInput("a form is sent as it is, without Content-Encoding")
    form = read_form(body, http.header(b"content-type"))
    del body
    file = form.pop("file", None)
    if file is None or file.filename is None:
        raise _missing("file")
    purpose = _text(form, "purpose")
    if purpose is None:
        raise _missing("purpose")
    if purpose != "batch":
        raise InvalidInput("Invalid 'purpose': this server keeps files of batches only: 'batch'.",
                           parameter="purpose", problem="unsupported_value")  # fmt: skip
    keep_s = _keep_s(form)
    if form:
        name = next(iter(form))[:64]
        raise InvalidInput(f"Unknown parameter: '{name}'.", parameter=name, problem="unknown_parameter")
    name = file.filename.replace("\\", "/").rpartition("/")[2][:_LONGEST_NAME] or "file"
    kept = await door.batches().add_file(http.caller, name, file.content, keep_s)
    return answered(http, file_object(kept))


def _keep_s(form: dict[str, Part]) -> float | None:
    anchor, seconds = _text(form, "expires_after[anchor]"), _text(form, "expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    least, most = KEEP_S
    if anchor != "created_at" or seconds is None or not seconds.isascii() or not seconds.isdigit():
        raise _refused("expires_after", "anchor 'created_at' and a number of seconds")
    if len(seconds) > 8 or not least <= int(seconds) <= most:
        raise _refused("expires_after[seconds]", f"{least} to {most}")
    return float(seconds)


def _text(form: dict[str, Part], name: str) -> str | None:
    part = form.pop(name, None)
    if part is None:
        return None
    try:
        return part.content[:1024].decode()
    except UnicodeDecodeError:
        raise _refused(name, "text in UTF-8") from None


async def listed(http: HttpRequest, door: Door) -> HttpResponse:
    """The caller's files, the newest first, unless `order` is asc."""
    query = query_of(http)
    files = await door.batches().files(http.caller)
    if (purpose := query.get("purpose")) is not None:
        files = [file for file in files if file.purpose == purpose]
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise _refused("order", "'asc' or 'desc'")
    return page(http, query, [file_object(file) for file in (files if order == "desc" else files[::-1])], _MOST_PAGE)


async def one(http: HttpRequest, door: Door) -> HttpResponse:
    """The file's description."""
    return await looked_up(http, door.batches().file(http.caller, http.match["file"]), file_object)


async def content(http: HttpRequest, door: Door) -> HttpResponse:
    """The file's bytes."""
    try:
        found = await door.batches().content(http.caller, http.match["file"])
    except NotFound as error:
        return refused_as(404, error.message, http)
    return HttpResponse(200, found, "application/octet-stream", request_id(http))


async def remove(http: HttpRequest, door: Door) -> HttpResponse:
    """The file is gone."""
    id = http.match["file"]
    work = door.batches().remove_file(http.caller, id)
    return await looked_up(http, work, lambda _: {"id": id, "object": "file", "deleted": True})


def file_object(file: StoredFile) -> dict[str, object]:
    """A file as clients read it."""
    return {
        "id": file.id, "object": "file", "bytes": file.size_bytes, "created_at": file.created_at,
        "expires_at": file.expires_at, "filename": file.name, "purpose": file.purpose, "status": "processed",
        "status_details": None,
    }  # fmt: skip


async def looked_up(http: HttpRequest, work: Awaitable[T], shape: Callable[[T], dict[str, object]]) -> HttpResponse:
    """What `work` finds; 404 and 409 as this API says them of what is no model."""
    try:
        found = await work
    except NotFound as error:
        return refused_as(404, error.message, http)
    except AlreadyExists as error:
        return refused_as(409, error.message, http)
    return answered(http, shape(found))


def refused_as(status: int, message: str, http: HttpRequest) -> HttpResponse:
    """An error about an id."""
    headers = (*request_id(http), ("X-Should-Retry", "false"))
    return HttpResponse(status, orjson.dumps({"error": id_error(message)}), headers=headers)


def id_error(message: str) -> dict[str, object]:
    """The value of `error` about an id of what is no model."""
    return {"message": message, "type": "invalid_request_error", "param": "id", "code": None}


def answered(http: HttpRequest, members: dict[str, object]) -> HttpResponse:
    """A 200 with an object."""
    return HttpResponse(200, orjson.dumps(members), headers=request_id(http))


def page(
    http: HttpRequest, query: dict[str, str], objects: Sequence[dict[str, object]], most: int, usual: int | None = None
) -> HttpResponse:
    """The part of a list that `after` and `limit` name. Raises: InvalidInput."""
    text = query.get("limit", str(most if usual is None else usual))
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise _refused("limit", f"1 to {most}")
    rest = list(objects)
    if (after := query.get("after")) is not None:
        places = [at for at, one in enumerate(objects) if one["id"] == after]
        if not places:
            raise _refused("after", "the id of something in this list")
        rest = rest[places[0] + 1 :]
    shown = rest[: int(text)]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return answered(http, {"object": "list", "data": shown, "has_more": len(rest) > len(shown), **ends})


def query_of(http: HttpRequest) -> dict[str, str]:
    """The parameters of the URL. Raises: InvalidInput."""
    return dict(query_values(http))


def query_values(http: HttpRequest) -> list[tuple[str, str]]:
    """As `query_of`, where a name may come several times. Raises: InvalidInput."""
    try:
        return parse_qsl(http.query, keep_blank_values=True, max_num_fields=32)
    except ValueError as error:
        raise InvalidInput(f"the query cannot be read: {error}") from None


def _missing(name: str) -> InvalidInput:
    return InvalidInput(f"Missing required parameter: '{name}'.", parameter=name, problem="missing_required_parameter")


def _refused(name: str, expected: str) -> InvalidInput:
    return InvalidInput(f"Invalid '{name}': expected {expected}.", parameter=name, problem="invalid_value")
