"""Who a request comes from, for those endpoints that keep a caller on one arm or one replica. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.fleet.spec import Sticky

_MOST_CHARACTERS = 4096  # of a key: longer ones are cut, which does no harm to their hash


def user_key(sticky: Sticky, headers: Mapping[str, str]) -> str:
    """The value of the header or cookie that tells callers apart; empty where the request has none.

    Header names are in lower case, as hooks have them. Over gRPC it is the metadata of that name.
    """
    if sticky.by == "header":
        return headers.get(sticky.name.lower(), "").strip()[:_MOST_CHARACTERS]
    return _cookie(headers.get("cookie", ""), sticky.name)[:_MOST_CHARACTERS]


def _cookie(header: str, name: str) -> str:
    """The first cookie of that name; names are told apart by case.

    Two `cookie` headers come joined with a comma instead of a semicolon (HTTP/2 splits them, RFC 9113 section 8.2.3).
    No cookie's value holds a comma (RFC 6265 section 4.1.1).
    """
    for pair in header.replace(",", ";").split(";"):
        key, equals, value = pair.strip().partition("=")
        if equals and key == name:
            return value.strip().strip('"')
    return ""
