"""The front's end of a channel, on the event loop: sends without blocking, and hands on what comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from penstock.core.errors import PenstockError
from penstock.runtime.workers import frame
from penstock.runtime.workers.channel import Channel, Received

log = logging.getLogger("penstock.worker")

_MESSAGES_PER_TURN = 32  # then other callbacks of the loop get their turn


class Link:
    """One worker's channel. `take` gets every message and raises what makes it invalid; `ended` is called when
    nothing more can come, with the reason for people, and with whether the other side broke the protocol."""

    def __init__(
        self, sock: socket.socket, take: Callable[[Received], None], ended: Callable[[str, bool], None],
        more: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Listens from now on. `more` says whether asking for another message at once is worth a system call."""
        self._channel = Channel(sock, front=True)
        self._take = take
        self._ended = ended
        self._more = more
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._channel.fileno(), self._readable)

    def send(self, message: frame.Message, slot: int = 0, payload: frame.Payload | None = None) -> None:
        """Sends a message, now or when the socket takes it. Raises: InvalidInput, OSError (see `Channel.send`)."""
        if payload is None:
            self._channel.send(message, slot)
        else:
            self._channel.send(message, slot, payload)
        if self._channel.outbox:
            self._loop.add_writer(self._channel.fileno(), self._writable)

    def tell(self, message: frame.Message) -> None:
        """Sends a message that does not matter if the other side is gone."""
        with contextlib.suppress(OSError):
            self.send(message)

    def release(self, slot: int) -> None:
        """The message last sent on `slot` is no longer needed."""
        self._channel.release(slot)

    def drain(self) -> None:
        """Takes in all that has come."""
        while self._receive():
            pass

    def close(self) -> None:
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()

    def _readable(self) -> None:
        for _ in range(_MESSAGES_PER_TURN):
            if not self._receive() or not self._more():
                return

    def _receive(self) -> bool:
        """Takes in one message; False when there is none."""
        try:
            received = self._channel.receive()
            if received is not None:
                self._take(received)
                return True
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True  # it died with messages unread; its own last ones come after this
        except PenstockError as error:
            log.error("worker_garbled", extra={"error": str(error)})
            self._end("it sent what cannot be read", True)
            return False
        except OSError as error:
            log.warning("worker_unreadable", extra={"error": error.strerror})
        self._end("it closed its connection", False)
        return False

    def _end(self, reason: str, broken: bool) -> None:
        self._loop.remove_reader(self._channel.fileno())
        self._ended(reason, broken)

    def _writable(self) -> None:
        try:
            empty = self._channel.flush()
        except OSError:
            empty = True
        if empty:
            self._loop.remove_writer(self._channel.fileno())
