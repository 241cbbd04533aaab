"""The route table, compiled for look-ups: which endpoint a request is for. Immutable; a new one replaces the old."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote

from penstock.fleet.routes import Endpoint, Table

# The model's name in a path: /v2/models/NAME/…, /v1/models/NAME[:predict], /predict/NAME, /endpoints/NAME/…, and the
# graph's in /v1/graphs/NAME and Seldon's /seldon/NAMESPACE/NAME/…. Names of deployments need no escapes, so an escaped
# one is none of ours.
_NAMED: Final = re.compile(
    r"/(?:v2/models|v1/models|v1/graphs|predict|endpoints|seldon/[^/]+)/([a-z0-9][-a-z0-9_.]{0,62})(?:[/:]|$)"
)

# What belongs to one runtime and not to its callers: loading and unloading, settings, its metrics and probes.
_PRIVATE: Final = re.compile(
    r"/(?:v2/repository|v2/logging|v2/trace|v2/\w+sharedmemory|v2/models/[^/]+/(?:trace|versions/[^/]+/trace)"
    r"|metrics|livez|readyz|internal|api/v1)(?:/|$)"
)


class _Rule(NamedTuple):
    """One match of one endpoint. Header names are lower case."""

    host: str
    path_prefix: str
    headers: tuple[tuple[str, str], ...]
    endpoint: Endpoint


class CompiledTable:
    """Look-ups in one version of the table."""

    __slots__ = ("_by_name", "_rules", "table", "version")

    def __init__(self, table: Table) -> None:
        self.table = table
        self.version = table.version
        self._by_name = {endpoint.name: endpoint for endpoint in table.endpoints}
        rules = [
            _Rule(
                match.host.lower(), match.path_prefix,
                tuple((name.lower(), value) for name, value in match.headers.items()), endpoint,
            )
            for endpoint in table.endpoints
            for match in endpoint.matches
        ]  # fmt: skip
        # The closest match counts: the longer path first, then one with a host, then the one with more headers.
        rules.sort(key=lambda rule: (-len(rule.path_prefix), not rule.host, -len(rule.headers), rule.endpoint.name))
        self._rules = tuple(rules)

    def by_name(self, name: str) -> Endpoint | None:
        """The deployment of that name."""
        return self._by_name.get(name)

    def endpoint_for(self, host: str, path: str, headers: Mapping[str, str]) -> Endpoint | None:
        """The endpoint of a request: by the closest of the written matches, else by the model's name in the path.

        `host` may have a port, `path` has no query, header names are lower case. None: nobody's, or a path that is not
        passed on (`private`).
        """
        if private(path):
            return None
        if self._rules:
            found = self._matched(host, path, headers)
            if found is not None:
                return found
        return self._named(path)

    @property
    def has_matches(self) -> bool:
        """Whether hosts and headers matter to any endpoint."""
        return bool(self._rules)

    def _named(self, path: str) -> Endpoint | None:
        named = _NAMED.match(path)
        return None if named is None else self._by_name.get(named[1])

    def by_host(self, host: str, headers: Mapping[str, str]) -> Endpoint | None:
        """The endpoint of a call whose path names no model (gRPC): by written matches without a path."""
        return self._matched(host, "", headers) if self._rules else None

    def _matched(self, host: str, path: str, headers: Mapping[str, str]) -> Endpoint | None:
        host = host.lower()
        bare = host if host.startswith("[") and host.endswith("]") else re.sub(r":\d*$", "", host)
        for rule in self._rules:
            if rule.host and rule.host != host and rule.host != bare:
                continue
            if rule.path_prefix and not _within(path, rule.path_prefix):
                continue
            if all(headers.get(name) == value for name, value in rule.headers):
                return rule.endpoint
        return None


EMPTY: Final = CompiledTable(Table(version=0))


def private(path: str) -> bool:
    """Whether a path is not passed on to replicas, in whichever way it is escaped, or is not in its plain form."""
    if "%" in path:
        path = unquote(path, errors="replace")
    if "//" in path or "/../" in path or "/./" in path or path.endswith(("/..", "/.")):
        return True
    return _PRIVATE.match(path) is not None


def _within(path: str, prefix: str) -> bool:
    """Whether whole segments of `path` begin with `prefix`: /a is not a prefix of /ab."""
    if not path.startswith(prefix):
        return False
    return len(path) == len(prefix) or prefix.endswith("/") or path[len(prefix)] == "/"
