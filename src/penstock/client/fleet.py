"""The platform from Python: `penstock.Fleet`.

    fleet = penstock.Fleet()
    fleet.deploy("fraud", "models/fraud/1", replicas="0..4")
    fleet.wait("fraud")

It speaks the controller's HTTP API, over the Unix socket in the platform's folder or over the admin port. Calls of
models go to the router's ports, with `penstock.Client`.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from penstock import config
from penstock.client.fleet_status import Change, Status, TenantStatus
from penstock.core.errors import (
    AlreadyExists,
    InvalidInput,
    LoadError,
    NotFound,
    NotReady,
    Overloaded,
    PenstockError,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    Unsupported,
)

T = TypeVar("T")

_SOCKET = "fleet.sock"
_LONGEST_POLL_S = 30.0
_RESTART_S = 15.0  # what a controller takes at most to be started anew, on a busy machine
_RETRY_S = 0.3
_ERRORS: Mapping[int, type[PenstockError]] = {
    400: InvalidInput, 401: Unauthenticated, 403: PermissionDenied, 404: NotFound, 409: AlreadyExists,
    413: InvalidInput, 422: InvalidInput, 429: QuotaExceeded, 501: Unsupported, 503: NotReady,
}  # fmt: skip


class Fleet:
    """A platform that runs. Methods block; one object may be used by several threads, as each call has a connection of
    its own."""

    def __init__(self, address: str | None = None, *, key: str | None = None, timeout_s: float = 60.0) -> None:
        """
        Args:
            address: the folder of the platform's state, or the URL of its admin port. Unset: PENSTOCK_FLEET, else the
                usual folder.
            key: the admin port's key. Unset: PENSTOCK_FLEET_KEY.
            timeout_s: for each call; following logs has none.

        Raises:
            InvalidInput: the address is neither.
        """
        environ = config.environment()
        given = address or environ.get("PENSTOCK_FLEET") or str(config.data_folder(environ) / "penstock")
        self._key = key or environ.get("PENSTOCK_FLEET_KEY")
        self._timeout_s = timeout_s
        self._socket: Path | None = None
        self._url = urlsplit(given)
        if "://" not in given:
            path = Path(given).expanduser().absolute()
            self._socket = path if path.name.endswith(".sock") else path / _SOCKET
        elif self._url.scheme not in ("http", "https") or not self._url.hostname:
            raise InvalidInput(
                f"the platform's address {given!r} is neither a folder nor a URL like http://127.0.0.1:8070"
            )

    def deploy(
        self, name: str, model: str | os.PathLike[str] | None = None, *, shadow: float | None = None, **changes: object
    ) -> Change:
        """Makes a deployment, or changes the one there is: what is not given stays as it was.

        Args:
            model: a path, an archive or `file.py:Name`, on the platform's machine.
            shadow: the new revision gets copies of so large a share of the requests (0 to 1), and serves none.
            changes: keys of a deployment's document, such as `replicas="0..4"` or `traffic="canary"`. In a table, None
                takes a key out: `env={"LANGUAGE": None}`.

        Raises:
            InvalidInput: what was asked can never work.
        """
        try:
            wish = dict(self.status(name).wish)
        except NotFound:
            wish = {}
            if model is None and not changes.get("graph"):
                raise InvalidInput(f"there is no deployment {name!r} to change; give a model or a graph") from None
        if model is not None:
            wish |= {"model": absolute(model), "graph": ""}
        for key in ("graph", "requirements"):
            if changes.get(key):
                changes[key] = absolute(str(changes[key]))
        if changes.get("graph"):
            wish["model"] = ""
        if "memory" in changes:
            wish.pop("memory_bytes", None)
        document = _overlaid(wish, changes)
        if shadow is not None:
            document["traffic"] = self._shadowing(name, document, shadow)
        return self.apply(name, document)

    def _shadowing(self, name: str, document: Mapping[str, object], share: float) -> dict[str, object]:
        """The document's traffic with a shadow of the revision that it makes. Raises: InvalidInput."""
        made = self.apply(name, document, dry_run=True)
        serves = self.status(name).stable if made.generation > 1 else None
        if serves is None or made.revision == serves:
            raise InvalidInput(f"a shadow of {name} is a new revision, beside one that serves")
        return {**_traffic(document.get("traffic")), "shadow": {"revision": made.revision, "share": share}}

    def apply(self, name: str, document: Mapping[str, object], *, dry_run: bool = False) -> Change:
        """Makes the deployment equal to the document: what is left out has its default. With `dry_run` it only says
        what would change. Raises: InvalidInput."""
        query = "?dry_run=1" if dry_run else ""
        return self._read(Change, "PUT", f"/api/v1/deployments/{quote(name, safe='')}{query}", document)

    def deployments(self) -> list[Status]:
        """All of them, by name."""
        return list(self._read(_List, "GET", "/api/v1/deployments").deployments)

    def watch(self, refresh_s: float | None = None) -> Iterator[list[Status]]:
        """All deployments now, and again whenever shares, phases or replicas changed. Goes on with a controller that is
        started anew. With `refresh_s` also that often: requests, latencies and rewards change all the time.

        Raises: NotReady: none answers at first, or for 15 s."""
        known: int | None = None
        while True:
            try:
                answer = self._listed(known, refresh_s or _LONGEST_POLL_S)
            except NotReady:
                if known is None:
                    raise
                answer, known = self._through_a_restart(self._listed), -1
            if answer.version != known or refresh_s is not None:
                known = answer.version
                yield list(answer.deployments)

    def _listed(self, after: int | None = None, poll_s: float = 0.0) -> _List:
        query = "" if after is None else f"?after={after}&timeout_s={poll_s:g}"
        return self._read(_List, "GET", f"/api/v1/deployments{query}", timeout_s=poll_s + self._timeout_s)

    def status(self, name: str) -> Status:
        """One deployment. Raises: NotFound."""
        return self._read(Status, "GET", _path(name))

    def wait(self, name: str, *, timeout_s: float = 300.0) -> Status:
        """Returns once the wished revision serves, or would: a deployment at zero has no replica at present.

        Raises:
            LoadError: that revision failed; says why.
            NotReady: it was not ready within `timeout_s`.
        """
        by = time.monotonic() + timeout_s
        while True:
            status = self._through_a_restart(lambda: self.status(name))
            wished = status.find(status.revision)
            if wished is not None and wished.phase == "failed":
                raise LoadError(f"{name} revision {wished.number} failed: {wished.reason}")
            if wished is not None and wished.phase == "ready" and status.phase in ("ready", "scaled-to-zero"):
                return status
            if time.monotonic() > by:
                raise NotReady(
                    f"{name} is {status.phase} after {timeout_s:g} s{f': {status.message}' if status.message else ''}"
                )
            time.sleep(0.1)

    def rollback(self, name: str, to: int | None = None) -> Change:
        """Goes back to the revision that was stable before, or to the one named. Raises: NotFound, InvalidInput."""
        return self._read(Change, "POST", _path(name, "rollback"), {} if to is None else {"to": to})

    def delete(self, name: str) -> None:
        """Takes the deployment out; what is in flight is answered first. Raises: NotFound."""
        self._call("DELETE", _path(name))

    def set_weights(self, name: str, weights: Mapping[int, float]) -> None:
        """Gives each revision its share; they are made to sum to 1. Raises: NotFound, InvalidInput."""
        self._call(
            "PUT", _path(name, "traffic"), {"weights": {str(number): weight for number, weight in weights.items()}}
        )

    def set_policy(self, name: str, policy: str, **options: object) -> None:
        """Lets another policy decide. Raises: NotFound, InvalidInput."""
        self._call("PUT", _path(name, "traffic"), {"policy": policy, "options": options})

    def set_sticky(self, name: str, by: str | None, key: str = "") -> None:
        """Keeps each caller on one arm, by the value of a "header" or "cookie" named `key`; None: draws each request.
        Raises: NotFound, InvalidInput."""
        self._call("PUT", _path(name, "traffic"), {"sticky": by and {"by": by, "name": key}})

    def set_shadow(self, name: str, revision: int | None, share: float = 1.0) -> None:
        """Sends the revision copies of that share of the requests; None: no copies. Raises: NotFound, InvalidInput."""
        shadow = None if revision is None else {"revision": revision, "share": share}
        self._call("PUT", _path(name, "traffic"), {"shadow": shadow})

    def promote(self, name: str, revision: int) -> None:
        """Ends the experiment: the revision gets everything. Raises: NotFound, InvalidInput."""
        self._call("PUT", _path(name, "traffic"), {"promote": revision})

    def retire(self, name: str, revision: int) -> None:
        """Takes one revision out of the experiment. Raises: NotFound, InvalidInput."""
        self._call("PUT", _path(name, "traffic"), {"retire": revision})

    def pause(self, name: str, paused: bool = True) -> None:
        """Keeps the weights as they are, until told otherwise. Raises: NotFound."""
        self._call("PUT", _path(name, "traffic"), {"pause": paused})

    def feedback(self, name: str, rewards: Sequence[tuple[str, float]]) -> None:
        """Brings rewards back, each with the decision token of its answer. Raises: NotFound, InvalidInput."""
        rows = [{"token": token, "reward": reward} for token, reward in rewards]
        self._call("POST", _path(name, "feedback"), {"rewards": rows})

    def comparison(self, name: str) -> Mapping[str, object]:
        """What the shadow's answers looked like beside the real ones. Raises: NotFound."""
        return self._read(dict, "GET", _path(name, "comparison"))

    def decisions(
        self, name: str, *, since: float | None = None, limit: int | None = None
    ) -> Iterator[Mapping[str, object]]:
        """The logged decisions with their rewards, oldest first. Raises: NotFound."""
        given = {key: value for key, value in (("since", since), ("limit", limit)) if value is not None}
        for line in self._lines(_path(name, "decisions") + (f"?{urlencode(given)}" if given else "")):
            yield json.loads(line)

    def logs(
        self,
        name: str,
        *,
        replica: str | None = None,
        revision: int | None = None,
        lines: int = 100,
        follow: bool = False,
    ) -> Iterator[str]:
        """Lines of the replicas' output, without line ends. Raises: NotFound."""
        given: dict[str, object] = {"lines": lines}
        given |= {key: value for key, value in (("replica", replica), ("revision", revision)) if value is not None}
        if follow:
            given["follow"] = 1
        yield from self._lines(f"{_path(name, 'logs')}?{urlencode(given)}", None if follow else self._timeout_s)

    def tenants(self) -> list[TenantStatus]:
        """Everybody who may call, without their keys."""
        return list(self._read(_Tenants, "GET", "/api/v1/tenants").tenants)

    def set_tenant(self, name: str, **limits: object) -> TenantStatus:
        """Makes a tenant, or gives one these limits only; the first answer has the key. Raises: InvalidInput."""
        return self._read(TenantStatus, "PUT", f"/api/v1/tenants/{quote(name, safe='')}", limits)

    def delete_tenant(self, name: str) -> None:
        """Its key is refused from now on. Raises: NotFound."""
        self._call("DELETE", f"/api/v1/tenants/{quote(name, safe='')}")

    # ------------------------------------------------------------------------------------------------------------------

    def _read(self, kind: type[T], method: str, path: str, body: object = None, timeout_s: float | None = None) -> T:
        answer = self._call(method, path, body, timeout_s)
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as error:
            raise NotReady(f"what answers at {self._where()} is no controller of Penstock: {error}") from error

    def _through_a_restart(self, call: Callable[[], T]) -> T:
        """What a call that changes nothing gives, also when the controller dies and is started anew meanwhile."""
        by: float | None = None
        while True:
            try:
                return call()
            except NotReady:
                now = time.monotonic()
                by = now + _RESTART_S if by is None else by
                if now > by:
                    raise
                time.sleep(_RETRY_S)

    def _call(self, method: str, path: str, body: object = None, timeout_s: float | None = None) -> bytes:
        connection, answer = self._ask(method, path, body, timeout_s or self._timeout_s)
        try:
            return answer.read()
        finally:
            connection.close()

    def _lines(self, path: str, timeout_s: float | None = 60.0) -> Iterator[str]:
        connection, answer = self._ask("GET", path, None, timeout_s)
        try:
            for line in answer:
                yield line.decode(errors="replace").rstrip("\r\n")
        finally:
            connection.close()

    def _ask(
        self, method: str, path: str, body: object, timeout_s: float | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        connection = self._connection(timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise NotReady(
                f"no platform answers at {self._where()} ({error or type(error).__name__}); start one with "
                "`penstock up`, or name another with --fleet"
            ) from error
        if answer.status >= 400:
            text = answer.read(1 << 20)
            connection.close()
            raise _error(answer, text)
        return connection, answer

    def _connection(self, timeout_s: float | None) -> http.client.HTTPConnection:
        if self._socket is not None:
            return _UnixConnection(self._socket, timeout_s)
        assert self._url.hostname is not None
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        return kind(self._url.hostname, self._url.port, timeout=timeout_s)

    def _where(self) -> str:
        return str(self._socket) if self._socket is not None else self._url.geturl()


def absolute(model: str | os.PathLike[str]) -> str:
    """A model's path as every process of this machine understands it; `file.py:Name` keeps its name."""
    model = os.fspath(model)
    path, colon, name = model.partition(":")
    if "://" in model:
        return model
    return f"{Path(path).expanduser().absolute()}{colon}{name}"


class _List(msgspec.Struct):
    deployments: tuple[Status, ...] = ()
    version: int = 0


class _Tenants(msgspec.Struct):
    tenants: tuple[TenantStatus, ...] = ()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("controller", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _overlaid(wish: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """The wish with changes. Tables are changed key by key: None takes one out. Another traffic policy begins with its
    own options."""
    made = dict(wish)
    for key, value in changes.items():
        present = made.get(key)
        if key == "traffic":
            before, after = _traffic(present), _traffic(value)
            other = after.get("policy", before.get("policy")) != before.get("policy")
            made[key] = {**before, **({"options": {}} if other else {}), **after}
        elif isinstance(value, Mapping):
            merged = {**present, **value} if isinstance(present, Mapping) else dict(value)
            made[key] = {name: one for name, one in merged.items() if one is not None or name not in value}
        else:
            made[key] = value
    return made


def _traffic(value: object) -> dict[str, object]:
    """A document's `traffic`, which may be a policy's name, as a table."""
    if isinstance(value, str):
        return {"policy": value}
    return dict(value) if isinstance(value, Mapping) else {}


def _path(name: str, *more: str) -> str:
    return "/".join(["/api/v1/deployments", quote(name, safe=""), *more])


def _error(answer: http.client.HTTPResponse, body: bytes) -> PenstockError:
    message = body[:500].decode(errors="replace")
    try:
        document = json.loads(body)
        if isinstance(document, dict) and isinstance(document.get("error"), str):
            message = document["error"]
    except ValueError:
        pass
    named: Mapping[str, type[PenstockError]] = {
        kind.__name__: kind for kind in (*_ERRORS.values(), Overloaded, LoadError)
    }
    kind = named.get(answer.headers.get("Penstock-Error", "")) or _ERRORS.get(answer.status, NotReady)
    return kind(message)
