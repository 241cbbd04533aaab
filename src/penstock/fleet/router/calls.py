"""What answers a request that is on its way: an exchange with a replica, or one of these."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

from penstock.core.errors import Internal, NotReady, PenstockError
from penstock.fleet.router.plan import Own, Said
from penstock.fleet.router.request_head import Head

if TYPE_CHECKING:
    from penstock.fleet.router.client import ClientConnection
    from penstock.fleet.router.front import HttpFront

log = logging.getLogger("penstock.router")


class Call(Protocol):
    """What answers the request that is on its way."""

    def begin(self) -> None:
        """Raises: PenstockError, which goes to `fail`."""

    def more(self, data: bytes) -> None:
        """A further part of a streamed body."""

    def no_more(self) -> None: ...

    def abandon(self) -> None:
        """The caller left."""

    def fail(self, error: PenstockError) -> None: ...

    def client_full(self, full: bool) -> None:
        """Whether the caller takes more of the answer."""


class ErrorCall:
    """A request that is answered with an error at once."""

    __slots__ = ("_client", "_error", "_front", "_head")

    def __init__(self, front: HttpFront, client: ClientConnection, head: Head, error: PenstockError) -> None:
        self._front = front
        self._client = client
        self._head = head
        self._error = error

    def begin(self) -> None:
        self.fail(self._error)

    def fail(self, error: PenstockError) -> None:
        self._front.count_error("", error)
        self._client.fail(error, self._head)

    def more(self, data: bytes) -> None: ...

    def no_more(self) -> None: ...

    def abandon(self) -> None: ...

    def client_full(self, full: bool) -> None: ...


class OwnCall:
    """A request for one of the router's own paths."""

    __slots__ = ("_body", "_client", "_front", "_head", "_own", "_task")

    def __init__(self, front: HttpFront, client: ClientConnection, head: Head, own: Own, body: bytes) -> None:
        self._front = front
        self._client = client
        self._head = head
        self._own = own
        self._body = body
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        said = self._own(self._head, self._body)
        if inspect.isawaitable(said):
            self._task = self._front.loop.create_task(self._later(said))
        else:
            self._reply(said)

    async def _later(self, awaited: Awaitable[Said]) -> None:
        try:
            said = await awaited
        except PenstockError as error:
            self._task = None
            self.fail(error)
        except asyncio.CancelledError:
            if self._task is not None:  # not by the caller's leaving
                self.fail(NotReady("the router is stopping", retry_after_s=1.0))
        except Exception:
            log.exception("answering a path of the router's own failed")
            self.fail(Internal("internal error; the router's log has the traceback"))
        else:
            self._task = None
            self._reply(said)

    def _reply(self, said: Said) -> None:
        status, body, content_type = said
        self._client.reply(status, body, self._head, content_type)

    def fail(self, error: PenstockError) -> None:
        self._front.count_error("", error)
        self._client.fail(error, self._head)

    def more(self, data: bytes) -> None: ...

    def no_more(self) -> None: ...

    def abandon(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def client_full(self, full: bool) -> None: ...
