"""What keeps a second controller from acting: a lock on the state's folder, and one in a database that is shared."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from penstock.core.errors import AlreadyExists

_LOCK = "controller.lock"
# A controller that was killed lets go of the lock at once; one that ends needs a moment for its connections.
_WAIT_S = 2.0
_LOOK_S = 0.05
# One number for the advisory lock of PostgreSQL: any will do that others do not use. Here "penstock" in ASCII.
ADVISORY = int.from_bytes(b"penstock")


@contextlib.contextmanager
def locked(state: Path) -> Iterator[None]:
    """Lets one controller act for a state. Raises: AlreadyExists."""
    with (state / _LOCK).open("a") as file:
        by = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > by:
                    raise AlreadyExists(f"another controller runs with the state {state}") from None
                time.sleep(_LOOK_S)
        yield


class DatabaseLock:
    """Lets one controller act for a PostgreSQL database, wherever its state is. A file of SQLite needs none: its folder
    is locked. The lock lives as long as a connection, so `hold` is to be called again before each look at the fleet.
    On one thread at a time; it may block."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    def hold(self) -> None:
        """Returns with the lock held, anew where its connection was lost.

        Raises:
            AlreadyExists: another controller has it.
            DBAPIError: the database does not answer.
        """
        if self._engine.dialect.name != "postgresql":
            return
        if self._connection is not None:
            try:
                self._connection.execute(text("select 1"))
                return
            except DBAPIError:  # the server was restarted, or ended the connection; others may have the lock by now
                self.close()
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            by = time.monotonic() + _WAIT_S
            while not connection.execute(text("select pg_try_advisory_lock(:key)"), {"key": ADVISORY}).scalar():
                if time.monotonic() > by:
                    raise AlreadyExists("another controller runs with this database")
                time.sleep(_LOOK_S)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        """Lets go of it."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(DBAPIError):
                connection.invalidate()  # never back into the pool, where the lock would live on
            connection.close()
