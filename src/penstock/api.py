"""Serving from Python: `serve` blocks, `Server` runs beside the program, for notebooks and tests.

User code runs in workers here too: a function or class is handed to them as its file and name, never as an object, so
the model that a test drives is loaded exactly as `penstock serve file.py:Name` loads it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from penstock.config import options_of
from penstock.core.errors import Internal, InvalidInput
from penstock.core.nearest import nearest
from penstock.runtime.assemble import Configuration, Written, effective
from penstock.runtime.options import ModelOptions, ServerOptions

if TYPE_CHECKING:
    from penstock.core.declare import Batch
    from penstock.core.door import ModelDescription
    from penstock.runtime.server import ServerStatus

log = logging.getLogger("penstock.api")

Target = str | os.PathLike[str] | Callable[..., object]


def serve(
    target: Target,
    *,
    artifact: str | os.PathLike[str] | None = None,
    batch: Batch | bool | None = None,
    on_ready: Callable[[ServerStatus], None] | None = None,
    **options: object,
) -> None:
    """Serves until SIGTERM or Ctrl-C. Blocks; call it under `if __name__ == "__main__":`, on the main thread.

    Args:
        target: a path as for `penstock serve`, or a function or class at the top level of a file.
        artifact: the weights that a class's `load` is given.
        batch: how requests are joined; False keeps them apart.
        on_ready: called once every model answers.
        options: every option of docs/configuration.md, of the server and of the model, by its file key.

    Raises:
        InvalidInput: an option or the target can never work.
        PenstockError: the server could not start.
    """
    _refuse_import(sys._getframe(1).f_globals.get("__name__"), sys._getframe(1).f_code.co_name)
    import uvloop

    from penstock.runtime.server import run

    configuration = _configuration("penstock.serve", target, artifact, batch, options)
    models = [model.value for model in configuration.models]

    def ready(status: ServerStatus) -> None:
        names = ", ".join(f"{model.name}@{model.version}" for model in status.models)
        log.info("serving", extra={"models": names, "http": status.http_url, "grpc": status.grpc_address or ""})
        if on_ready is not None:
            on_ready(status)

    uvloop.run(run(configuration.server.value, models, on_ready=ready))


class Server:
    """A server beside the program, on free ports unless they are given; a context manager.

        with penstock.Server("model.onnx") as server:
            print(server.http_url)

    Its loop runs in a thread of its own. Arguments are as for `serve`; the constructor only checks them.
    """

    def __init__(
        self,
        target: Target,
        *,
        artifact: str | os.PathLike[str] | None = None,
        batch: Batch | bool | None = None,
        **options: object,
    ) -> None:
        """Raises: InvalidInput, as `serve`."""
        ports = {"http_port": 0} | ({} if options.get("grpc") is False else {"grpc_port": 0})
        self._configuration = _configuration("penstock.Server", target, artifact, batch, {**ports, **options})
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._settled = threading.Event()  # ready, or failed
        self._status: ServerStatus | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns once every model answers.

        Raises:
            PenstockError: the server could not start.
        """
        if self._thread is not None:
            raise InvalidInput("this Server was started before; make another one")
        self._thread = threading.Thread(target=self._run, name="penstock", daemon=True)
        self._thread.start()
        self._settled.wait()
        if self._status is None:
            self._thread.join()
            raise self._failure or Internal("the server ended before it was ready")

    def stop(self) -> None:
        """Returns once what is in flight was answered and all workers are gone. Does nothing a second time.

        Raises:
            PenstockError: the server failed while it ran or stopped.
        """
        if self._thread is None or self._loop is None or self._stop is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread, failure = None, self._failure
        if failure is not None:
            raise failure

    @property
    def http_url(self) -> str:
        """Such as `http://127.0.0.1:40123`."""
        return self._running().http_url

    @property
    def grpc_address(self) -> str | None:
        """Such as `127.0.0.1:40124`; None without gRPC."""
        return self._running().grpc_address

    @property
    def models(self) -> list[ModelDescription]:
        """What was loaded when the server became ready."""
        return self._running().models

    def _running(self) -> ServerStatus:
        if self._status is None:
            raise InvalidInput("this Server is not running; use it as `with penstock.Server(…) as server:`")
        return self._status

    def _run(self) -> None:
        import uvloop

        try:
            uvloop.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._settled.set()

    async def _serve(self) -> None:
        from penstock.runtime.server import run

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        models = [model.value for model in self._configuration.models]
        await run(self._configuration.server.value, models, on_ready=self._ready, stop=self._stop)

    def _ready(self, status: ServerStatus) -> None:
        self._status = status
        self._settled.set()


def path_of(target: Target) -> str:
    """What a worker can load `target` from: a path, or `file.py:Name`.

    Raises:
        InvalidInput: a lambda, something made inside a function, or an object without a file.
    """
    if isinstance(target, (str, os.PathLike)):
        return os.fspath(target)
    name = getattr(target, "__qualname__", "")
    module = sys.modules.get(getattr(target, "__module__", ""))
    file = getattr(module, "__file__", None)
    rule = "a model is a path, or a function or class at the top level of a file, because workers load it by name"
    if not (inspect.isfunction(target) or inspect.isclass(target)):
        raise InvalidInput(f"{target!r} cannot be served: {rule}; give its class, and build it in `load`")
    if not name.isidentifier():
        raise InvalidInput(f"{name} cannot be served: {rule}; move it there and give it a name")
    if file is None or not Path(file).is_file():
        raise InvalidInput(f"{name} was not defined in a file: {rule}; write it into a file and pass 'file.py:{name}'")
    if inspect.unwrap(getattr(module, name, object())) is not inspect.unwrap(target):  # type: ignore[arg-type]
        raise InvalidInput(f"{file} has no {name} that is this object: {rule}")
    return f"{Path(file).resolve()}:{name}"


def _configuration(
    caller: str,
    target: Target,
    artifact: str | os.PathLike[str] | None,
    batch: Batch | bool | None,
    options: dict[str, object],
) -> Configuration:
    known_server, known_model = options_of(ServerOptions), options_of(ModelOptions)
    for key in options:
        if key not in known_server and key not in known_model:
            near = nearest(key, [*known_server, *known_model])
            raise InvalidInput(f"{caller}({key}=…): there is no option {key!r}{near}")
    server = {key: value for key, value in options.items() if key in known_server}
    model = {key: value for key, value in options.items() if key in known_model} | _batch(batch)
    if artifact is not None:
        given = model.get("options") or {}
        model["options"] = {**given, "artifact": os.fspath(artifact)} if isinstance(given, dict) else given
    return effective(Written([path_of(target)], server, model, origin=f"{caller}({{key}}=…)"))


def _batch(batch: Batch | bool | None) -> dict[str, object]:
    if batch is None or isinstance(batch, bool):
        return {"batch": batch}
    made: dict[str, object] = {"batch": True, "max_batch_size": batch.max_size, "batch_delay_s": batch.delay_s}
    return made | ({"batch_sizes": batch.sizes} if batch.sizes else {})


def _refuse_import(module: str | None, function: str) -> None:
    """A worker imports the model's file: a `serve` at its top level would start a server inside each worker."""
    if function == "<module>" and module not in (None, "__main__"):
        raise InvalidInput(
            'penstock.serve was called while its file was imported; put it under `if __name__ == "__main__":`'
        )
