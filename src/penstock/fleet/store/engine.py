"""Opens the database: SQLite in a file by default, PostgreSQL by its URL. Several processes use it at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError

from penstock.core.errors import InvalidInput
from penstock.fleet.store.schema import metadata

FILE = "fleet.db"
# Writers of one SQLite file wait for each other; each holds it for milliseconds, so a minute means that one hangs.
BUSY_TIMEOUT_S = 10.0
_CREATED_AT_ONCE = 3  # tries, where several processes make the tables of a new database at the same moment


def default_url(state: Path) -> str:
    """The URL of the SQLite file in a state folder."""
    return f"sqlite:///{(state / FILE).absolute()}"


def open_engine(url: str) -> Engine:
    """An engine whose tables all exist. Usable on any thread; `dispose` ends it.

    Raises:
        InvalidInput: not a URL of SQLite or PostgreSQL, or nobody answers there.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidInput("the database is a URL such as sqlite:////path/fleet.db or postgresql://host/name") from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise InvalidInput("the database is a file: several processes share it; sqlite:////path/fleet.db")
        engine = _sqlite(url, Path(parsed.database))
    elif kind == "postgresql":
        try:
            engine = sqlalchemy.create_engine(
                parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=5,
                isolation_level="READ COMMITTED", connect_args={"connect_timeout": 10},
            )  # fmt: skip
        except ModuleNotFoundError as error:
            raise InvalidInput(f"a PostgreSQL database needs {error.name}: pip install 'penstock[postgres]'") from None
    else:
        raise InvalidInput(f"database {kind!r}: sqlite or postgresql")
    for attempt in range(_CREATED_AT_ONCE):
        try:
            metadata.create_all(engine)
            break
        except (OperationalError, ProgrammingError, sqlalchemy.exc.IntegrityError) as error:
            if attempt + 1 == _CREATED_AT_ONCE:
                engine.dispose()
                where = parsed.render_as_string(hide_password=True)
                raise InvalidInput(f"cannot use the database {where}: {error.orig}") from error
    return engine


def _sqlite(url: str, file: Path) -> Engine:
    # Readable by its owner only: it holds the secret that signs decision tokens.
    try:
        os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise InvalidInput(f"cannot use the database file {file}: {error.strerror}") from None
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    # pysqlite begins transactions late and by itself; a reader that turns into a writer then fails at once instead of
    # waiting. So we begin them. Source: SQLAlchemy, "SQLite", section "Serializable isolation / Savepoints".
    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # with WAL: no corruption, and what is lost with power is ms
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql("BEGIN" if options.get("penstock_reading") else "BEGIN IMMEDIATE")

    return engine
