"""Brings what the sources offer to the manager: once, polled, or on explicit calls, as `model_control` says."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from weakref import WeakValueDictionary

from penstock.core.errors import InvalidInput, LoadError, NotFound, PenstockError, Unsupported
from penstock.runtime import lifecycle
from penstock.runtime.disk import from_disk
from penstock.runtime.graphs import files as graph_files
from penstock.runtime.graphs.files import ADAPTER as GRAPH
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions, ServerOptions
from penstock.runtime.sources import Source, WishedModel
from penstock.runtime.sources.local import LocalSource
from penstock.runtime.triton_config import options_from_config
from penstock.runtime.workers.shortage import is_shortage

log = logging.getLogger("penstock.repository")

_PATH_FAULTS = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)  # of what the caller named


class ModelRepository:
    """What could be loaded, and which of it is asked for."""

    def __init__(self, sources: Sequence[Source], manager: Manager, options: ServerOptions) -> None:
        self._sources = sources
        self._manager = manager
        self._options = options
        self._offered: dict[str, WishedModel] = {}
        self._asked: set[str] = set()  # with explicit control: the models asked for
        self._overrides: dict[str, WishedModel] = {}  # loaded with files or settings of the call's own
        self._folders: dict[str, Path] = {}
        self._poller: asyncio.Task[None] | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # one call at a time for a model
        self._loads: set[asyncio.Task[None]] = set()
        self._last_trouble = ""

    async def start(self) -> None:
        """Loads what is wished at the start, and returns when each model answers or has failed.

        Raises:
            LoadError: a model has no version that answers; names all of them.
            InvalidInput: a source has nothing that can be loaded.
        """
        await self._look()
        explicit = self._options.model_control == "explicit"
        if explicit:
            wished = self._options.load_models
            self._asked = set(self._offered) if "*" in wished else set(wished)
            for name in self._asked - set(self._offered):
                raise NotFound(f"load_models names '{name}'; there are {', '.join(sorted(self._offered)) or 'none'}")
        self._apply()
        await self._manager.settled()
        if failures := self._manager.failures():
            raise LoadError("; ".join(failures.values()))
        if self._options.model_control == "poll":
            self._poller = asyncio.get_running_loop().create_task(self._poll())

    async def load(self, model: str, config: Mapping[str, object] | None, files: Mapping[str, bytes] | None) -> None:
        """Returns once the model answers as it is wished now. Raises: see `core.door.Door.load`.

        What was begun is brought to its end even if the caller leaves: half of it is neither the old state nor the new.
        """
        self._must_be_explicit("load")
        work = asyncio.get_running_loop().create_task(self._load(model, config, files))
        self._loads.add(work)
        work.add_done_callback(self._loaded)
        await asyncio.shield(work)

    async def _load(self, model: str, config: Mapping[str, object] | None, files: Mapping[str, bytes] | None) -> None:
        async with self._lock(model):
            await self._look()
            if files and not config:
                raise InvalidInput("files in a load call need a config beside them")
            previous, previous_folder = self._overrides.pop(model, None), self._folders.pop(model, None)
            folder: Path | None = None
            try:
                offered = self._offered.get(model)
                if files:
                    folder = await from_disk(_write_files, files)
                    self._folders[model] = folder
                    offered = await from_disk(self._from_folder, model, folder)
                if offered is None:
                    raise NotFound(
                        f"no model '{model}' to load; there are {', '.join(sorted(self._offered)) or 'none'}"
                    )
                if config:
                    offered = dataclasses.replace(offered, options=options_from_config(config, offered.options))
                if files or config:
                    self._check_reach(model, offered)
                    self._overrides[model] = offered
                asked_before = model in self._asked
                self._asked.add(model)
                self._manager.forget_failure(model)
                self._manager.touch(model)
                self._apply()
                await self._manager.settled(model)
                if (reason := self._failure(model)) is not None:
                    if not asked_before and not self._manager.ready_versions(model):
                        self._asked.discard(model)
                        self._overrides.pop(model, None)
                        self._apply()
                    raise LoadError(f"failed to load '{model}': {reason}")
            except BaseException:
                self._restore(model, previous, previous_folder, folder)
                raise
            if previous_folder is not None:
                shutil.rmtree(previous_folder, ignore_errors=True)

    async def unload(self, model: str) -> None:
        """Returns at once. Raises: NotFound, Unsupported."""
        self._must_be_explicit("unload")
        async with self._lock(model):
            if model not in self._asked and model not in self._manager.known():
                raise NotFound(f"no model '{model}' is loaded; loaded: {', '.join(self._manager.names()) or 'none'}")
            self._asked.discard(model)
            self._overrides.pop(model, None)
            self._apply()
            if (folder := self._folders.pop(model, None)) is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def unloaded(self) -> list[str]:
        """Models that could be loaded and are not, sorted."""
        return sorted(set(self._offered) - set(self._manager.known()))

    async def close(self) -> None:
        """Stops polling and loading, and removes files that calls brought."""
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller
        for work in self._loads:
            work.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        self._folders.clear()

    def _loaded(self, work: asyncio.Task[None]) -> None:
        self._loads.discard(work)
        if not work.cancelled():
            work.exception()  # seen: the caller may have left

    def _lock(self, model: str) -> asyncio.Lock:
        return self._locks.setdefault(model, asyncio.Lock())

    def _must_be_explicit(self, verb: str) -> None:
        if self._options.model_control != "explicit":
            raise Unsupported(
                f'this server decides itself what is loaded (model_control = "{self._options.model_control}"); '
                f"to {verb} models by calls, start it with --model-control explicit"
            )

    async def _look(self) -> None:
        offered: dict[str, WishedModel] = {}
        for source in self._sources:
            for name, model in (await from_disk(source.poll)).items():
                if name in offered:
                    raise InvalidInput(f"two models are called '{name}'; give one another name")
                offered[name] = model
        self._offered = offered

    def _apply(self) -> None:
        if self._options.model_control == "explicit":
            known = {
                **self._offered,
                **{name: self._overrides[name] for name in self._overrides if name in self._asked},
            }
            asked = self._with_needs(known)
            wished = {name: model for name, model in known.items() if name in asked}
        else:
            wished = self._offered
        self._manager.apply(wished)

    def _with_needs(self, known: Mapping[str, WishedModel]) -> set[str]:
        """The models asked for, and those that they need: loading a graph loads its models."""
        wanted: set[str] = set()
        waiting = list(self._asked)
        while waiting:
            name = waiting.pop()
            if name not in wanted:
                wanted.add(name)
                waiting += known[name].needs if name in known else ()
        return wanted

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._options.poll_s)
            try:
                await self._look()
                self._apply()
                self._last_trouble = ""
            except Exception as error:  # half-written folders, a vanished disk: what serves goes on serving
                if not isinstance(error, PenstockError) and not is_shortage(error):
                    log.exception("poll_failed")
                elif str(error) != self._last_trouble:
                    log.warning("poll_failed", extra={"error": str(error)})
                self._last_trouble = str(error)

    def _failure(self, model: str) -> str | None:
        # A version that serves has a reason when what should have replaced it failed. That of one which is no longer
        # wanted is past: its successor is what was to be loaded.
        wanted = {"", *map(str, self._manager.wanted(model))}
        failed = [
            status
            for status in self._manager.index()
            if status.name == model
            and status.version in wanted
            and status.state in ("UNAVAILABLE", "READY")
            and status.reason not in ("", "unloaded", lifecycle.RESTING)
        ]
        if failed:
            return "; ".join(
                f"version {status.version}: {status.reason}" if status.version else status.reason for status in failed
            )
        return None if self._manager.ready_versions(model) else "it has no version that could be loaded"

    def _restore(
        self, model: str, previous: WishedModel | None, previous_folder: Path | None, folder: Path | None
    ) -> None:
        if folder is not None:
            self._folders.pop(model, None)
            shutil.rmtree(folder, ignore_errors=True)
        self._overrides.pop(model, None)
        if previous is not None:
            self._overrides[model] = previous
        if previous_folder is not None:
            self._folders[model] = previous_folder

    def _from_folder(self, model: str, folder: Path) -> WishedModel:
        base = self._offered[model].options if model in self._offered else ModelOptions()
        # Whoever trusted the model's own files did not mean those of a call.
        found = LocalSource([dataclasses.replace(base, name=model, path=str(folder), trust=False)]).poll()
        if model not in found:
            raise InvalidInput("the files of the call hold no model; name them like `file:1/model.onnx`")
        return found[model]

    def _check_reach(self, model: str, brought: WishedModel) -> None:
        """What a call brings may do no more than compute, unless the server's owner said so. Raises: Unsupported."""
        if self._options.accept_code:
            return
        paths = [version.path for version in brought.versions.values()]
        own = self._offered.get(model)
        if own is not None and paths == [version.path for version in own.versions.values()]:
            paths = []  # the files are the owner's, the settings are the call's
        remedy = "put it into the model's folder, or start the server with --accept-code"
        if brought.options.options.get("python") != (own.options.options.get("python") if own is not None else None):
            raise Unsupported(f"this load call sets `python`, a program that this server would start: {remedy}")
        if brought.adapter == "python" and paths:
            raise Unsupported(f"this load call brings Python code, which could do anything here: {remedy}")
        if brought.adapter != GRAPH:
            return
        for path in paths:
            if asked := graph_files.elsewhere(path, model):
                raise Unsupported(
                    f"this load call brings a graph that has this server ask {', '.join(asked[:4])}, which may be "
                    f"anything that it can reach: {remedy}"
                )
        if brought.options.options.get("state") != (own.options.options.get("state") if own is not None else None):
            raise Unsupported(f"this load call sets `state`, a file that this server would write: {remedy}")


def _write_files(files: Mapping[str, bytes]) -> Path:
    """A new private folder with the call's files.

    Raises:
        InvalidInput: a path would leave the folder, is too long, or is a file and a folder at once.
        LoadError: they cannot be written here.
    """
    folder = Path(tempfile.mkdtemp(prefix="penstock-load-"))
    try:
        for name, data in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name or "\\" in name:
                raise InvalidInput(f"file path {name!r}: write a relative path without '..', such as `1/model.onnx`")
            target = folder.joinpath(*path.parts)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            except OSError as error:
                kind = InvalidInput if error.errno in _PATH_FAULTS else LoadError
                raise kind(f"file path {name[:100]!r} cannot be written: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder
