"""Finds the route of a request's target among all protocols' routes.

Targets are taken apart before they are decoded, so an encoded slash stays inside its segment: a model called
"team/model" is reached as team%2Fmodel and can never be mistaken for two segments. Where several patterns match, the
most literal one wins segment by segment, whatever the order of the protocols.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from penstock.core.errors import InvalidInput
from penstock.protocols import HttpProtocol, Route

_CACHED = 1024  # targets; a client can fill it with real routes only, and only up to _CACHED_BYTES each
_CACHED_BYTES = 256
_NAME = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Found:
    """The route of a target, its decoded path, its query as sent, and what the pattern's {names} matched."""

    route: Route
    protocol: HttpProtocol
    path: str
    query: str
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Missing:
    """No route. `allowed` are the methods that the path does answer; none if the path is unknown."""

    path: str
    query: str
    allowed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Pattern:
    rank: tuple[tuple[int, int], ...]  # per segment: how literal it is, and how many characters of it
    segments: tuple[str | re.Pattern[str], ...]
    by_method: dict[str, tuple[Route, HttpProtocol]]

    def match(self, segments: Sequence[str]) -> dict[str, str] | None:
        names: dict[str, str] = {}
        for want, got in zip(self.segments, segments, strict=True):
            if isinstance(want, str):
                if want != got:
                    return None
            else:
                match = want.fullmatch(got)
                if match is None:
                    return None
                names.update(match.groupdict())
        return names


class Router:
    """All routes of a listener."""

    def __init__(self, protocols: Sequence[HttpProtocol]) -> None:
        """
        Raises:
            InvalidInput: two routes would answer the same requests; the message names both.
        """
        by_shape: dict[str, _Pattern] = {}
        for protocol in protocols:
            for route in protocol.routes():
                shape = _NAME.sub("{}", route.pattern)
                pattern = by_shape.get(shape)
                if pattern is None:
                    pattern = by_shape[shape] = _compile(route.pattern)
                other = pattern.by_method.get(route.method)
                if other is not None:
                    raise InvalidInput(
                        f"protocols {other[1].name} and {protocol.name} both answer {route.method} {route.pattern}: "
                        "enable one of them"
                    )
                pattern.by_method[route.method] = (route, protocol)
        self._by_length: dict[int, list[_Pattern]] = {}
        for pattern in sorted(by_shape.values(), key=lambda pattern: pattern.rank, reverse=True):
            self._by_length.setdefault(len(pattern.segments), []).append(pattern)
        self._cache: dict[tuple[bytes, bytes], Found] = {}

    def find(self, method: bytes, target: bytes) -> Found | Missing:
        """The route of a request line's method and target.

        Raises:
            InvalidInput: the target is no path, or holds what no name may hold (dot segments, control characters).
        """
        key = (method, target)
        found = self._cache.get(key)
        return found if found is not None else self._find(key)

    def _find(self, key: tuple[bytes, bytes]) -> Found | Missing:
        method, target = key[0].decode("ascii"), key[1]
        path, query = _split(target)
        if path == b"*":
            return Missing("*", query, ("GET", "HEAD", "POST", "OPTIONS") if method == "OPTIONS" else ())
        segments = [_decode(segment) for segment in path[1:].split(b"/")]
        text = "/" + "/".join(segments)
        allowed: list[str] = []
        wanted = "GET" if method == "HEAD" else method
        for pattern in self._by_length.get(len(segments), ()):
            names = pattern.match(segments)
            if names is None:
                continue
            hit = pattern.by_method.get(method) or pattern.by_method.get(wanted)
            if hit is not None:
                found = Found(*hit, path=text, query=query, names=names)
                if not query and len(target) <= _CACHED_BYTES:
                    if len(self._cache) >= _CACHED:
                        self._cache.clear()
                    self._cache[key] = found
                return found
            allowed += pattern.by_method
            break  # a less literal pattern does not answer for a more literal one
        if "GET" in allowed:
            allowed.append("HEAD")
        if allowed:
            allowed.append("OPTIONS")
        return Missing(text, query, tuple(dict.fromkeys(allowed)))


def _split(target: bytes) -> tuple[bytes, str]:
    """The raw path and the query; the absolute form's scheme and authority are dropped, as RFC 9112 3.2.2 asks."""
    if not target.startswith(b"/"):
        scheme, mark, rest = target.partition(b"://")
        if mark and scheme.lower() in (b"http", b"https"):
            _, slash, target = rest.partition(b"/")
            target = slash + target or b"/"
        elif target != b"*":
            raise InvalidInput("the request target must be a path such as /v2/health/ready")
    path, _, query = target.partition(b"#")[0].partition(b"?")
    return path or b"/", query.decode("latin-1")


def _decode(segment: bytes) -> str:
    if segment.isalnum():
        return segment.decode("ascii")
    try:
        text = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInput("the request path is not percent-encoded UTF-8") from None
    if text in (".", "..") or any(character < " " or character == "\x7f" for character in text):
        raise InvalidInput("the request path holds a dot segment or a control character")
    return text


def _compile(pattern: str) -> _Pattern:
    if not pattern.startswith("/"):
        raise InvalidInput(f"route pattern {pattern!r} does not begin with '/'")
    rank: list[tuple[int, int]] = []
    segments: list[str | re.Pattern[str]] = []
    for segment in pattern[1:].split("/"):
        parts = _NAME.split(segment)  # literal, name, literal, name, …, literal
        if len(parts) == 1:
            rank.append((2, 0))
            segments.append(segment)
            continue
        literal = sum(map(len, parts[::2]))
        rank.append((1 if literal else 0, literal))
        expression = "".join(
            re.escape(part) if index % 2 == 0 else f"(?P<{part}>.+)" for index, part in enumerate(parts)
        )
        segments.append(re.compile(expression, re.DOTALL))
    return _Pattern(tuple(rank), tuple(segments), {})
