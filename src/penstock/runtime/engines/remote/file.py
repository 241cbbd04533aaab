"""The file `NAME.upstream.toml`: which servers answer for a model, in the order in which they are asked.

context_tokens = 128000        # of the model there; what is longer is refused here

[[upstream]]
url = "https://api.example.com/v1"
model = "large"
key_env = "EXAMPLE_KEY"        # or key_file = "/run/secrets/example", or key = "…" in a file of mode 600
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from penstock.core.errors import LoadError
from penstock.core.nearest import nearest

_MOST_BYTES = 1 << 20
_MOST_UPSTREAMS = 32
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110, section 5.6.2
_OWN_HEADERS = frozenset({"authorization", "content-length", "content-type", "host", "transfer-encoding", "connection"})


@dataclass(frozen=True, slots=True)
class Upstream:
    """One server. `timeout_s` is waited for a connection, for the first answer, and between two pieces of it."""

    url: str  # without a slash at its end
    model: str
    key: str = field(default="", repr=False)
    timeout_s: float = 60.0
    headers: Mapping[str, str] = field(default_factory=dict)
    max_tokens_field: str = "max_tokens"


@dataclass(frozen=True, slots=True)
class Described:
    """All that a file says."""

    upstreams: tuple[Upstream, ...]
    context_tokens: int = 131_072
    max_running: int = 64
    embeds: bool = False
    extensions: bool = False  # they take what vLLM and Penstock take beyond OpenAI's API: top_k, min_p, grammars, …
    most_wait_s: float = 5.0  # for an upstream that says when to come again, when none other is left


_TOP: Mapping[str, type] = {
    "upstream": list, "context_tokens": int, "max_running": int, "embeds": bool, "extensions": bool,
    "most_wait_s": float,
}  # fmt: skip
_EACH: Mapping[str, type] = {
    "url": str, "model": str, "key": str, "key_env": str, "key_file": str, "timeout_s": float, "headers": dict,
    "max_tokens_field": str,
}  # fmt: skip
_SAID = {list: "tables [[upstream]]", int: "a whole number", bool: "true or false", float: "a number", str: "a text",
         dict: "a table of texts"}  # fmt: skip


def read(path: Path) -> Described:
    """What the file says, with its keys. Raises: LoadError, which names the key and what it may be."""
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise LoadError(f"{path.name} is larger than {_MOST_BYTES >> 20} MiB")
        table = tomllib.loads(raw.decode())
    except (OSError, ValueError) as error:
        raise LoadError(f"{path.name} cannot be read: {error}") from None
    _check(table, _TOP, path.name)
    entries = table.pop("upstream", [])
    if not entries or len(entries) > _MOST_UPSTREAMS:
        raise LoadError(f"{path.name} has {len(entries)} tables [[upstream]]: write 1 to {_MOST_UPSTREAMS}")
    private = not about.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    upstreams = tuple(_upstream(entry, f"{path.name}, upstream {at}", private) for at, entry in enumerate(entries, 1))
    for name in ("context_tokens", "max_running"):
        if table.get(name, 1) < 1:
            raise LoadError(f"{path.name}: {name} = {table[name]}: write a number above 0")
    return Described(upstreams, **table)


def _upstream(entry: object, where: str, private: bool) -> Upstream:
    if not isinstance(entry, dict):
        raise LoadError(f"{where}: write a table [[upstream]]")
    _check(entry, _EACH, where)
    if not entry.get("model"):
        raise LoadError(f"{where}: it lacks `model`, the name that the model has there")
    url = str(entry.get("url", ""))
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise LoadError(f"{where}: url = {url!r}: write one like https://HOST/v1, without a name, a query or a #")
    timeout = float(entry.get("timeout_s", 60.0))
    if not 0 < timeout <= 86_400:
        raise LoadError(f"{where}: timeout_s = {timeout}: write seconds, above 0")
    return Upstream(
        url.rstrip("/"), str(entry["model"]), _key(entry, where, private), timeout, _headers(entry, where),
        _max_tokens_field(entry, where),
    )  # fmt: skip


def _key(entry: Mapping[str, object], where: str, private: bool) -> str:
    given = [name for name in ("key", "key_env", "key_file") if name in entry]
    if len(given) > 1:
        raise LoadError(f"{where}: it has {' and '.join(given)}: write one")
    if "key" in entry:
        if not private:
            raise LoadError(f"{where}: it holds a key and others may read the file: chmod 600, or key_env or key_file")
        key = str(entry["key"])
    elif "key_env" in entry:
        key = os.environ.get(str(entry["key_env"]), "")
        if not key:
            raise LoadError(f"{where}: the environment variable {entry['key_env']} is not set")
    elif "key_file" in entry:
        try:
            key = Path(str(entry["key_file"])).expanduser().read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise LoadError(f"{where}: key_file cannot be read: {error}") from None
    else:
        return ""
    if not key.isascii() or not key.isprintable() or not key:
        raise LoadError(f"{where}: the key is empty, or has characters that no header takes")
    return key


def _headers(entry: Mapping[str, object], where: str) -> Mapping[str, str]:
    found = entry.get("headers", {})
    assert isinstance(found, dict)
    for name, value in found.items():
        if not _HEADER.match(name) or not isinstance(value, str) or not value.isprintable():
            raise LoadError(f"{where}: headers.{name}: it is no header with a text")
        if name.lower() in _OWN_HEADERS:
            raise LoadError(f"{where}: headers.{name} is set here; for a key write key_env or key_file")
    return found


def _max_tokens_field(entry: Mapping[str, object], where: str) -> str:
    name = str(entry.get("max_tokens_field", "max_tokens"))
    if name not in ("max_tokens", "max_completion_tokens"):
        raise LoadError(f"{where}: max_tokens_field = {name!r}: write max_tokens or max_completion_tokens")
    return name


def _check(table: Mapping[str, object], known: Mapping[str, type], where: str) -> None:
    for name, value in table.items():
        if name not in known:
            raise LoadError(f"{where}: it has no key {name!r}{nearest(name, known)}")
        kinds = (int, float) if known[name] is float else (known[name],)
        if not isinstance(value, kinds) or (isinstance(value, bool) and known[name] is not bool):
            raise LoadError(f"{where}: {name} = {value!r}: write {_SAID[known[name]]}")
