"""A language model as protocols see it: an `Ask` in, `Event`s out, with a version's tokens between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from penstock.core.door import Door, ModelDescription
from penstock.core.errors import InvalidInput, LoadError, NotFound, NotReady, Unsupported
from penstock.core.language import LanguageModel
from penstock.language.grammars import Compiler
from penstock.runtime.language.asking import Session
from penstock.runtime.language.compiles import Compiles
from penstock.runtime.language.figures import Spoken
from penstock.runtime.language.named import Named
from penstock.runtime.language.relaying import Relay
from penstock.runtime.language.texts import Texts, read
from penstock.runtime.language.wire import info_of

_Key = tuple[str, int, int]  # name, version, its load


class Sessions:
    """The language models behind one door. Tokenizers and templates are read once for each version, in a thread, and
    forgotten when it goes. `observe` takes what each request came to. `close` is the owner's."""

    def __init__(self, door: Door, observe: Callable[[Spoken], None]) -> None:
        self._door = door
        self._observe = observe
        self._texts: dict[_Key, asyncio.Task[Texts]] = {}
        self._compiles = Compiles(Compiler())

    async def open(self, model: str, version: str = "", passed: frozenset[str] = frozenset()) -> LanguageModel:
        """See `core.door.Door.language`. `passed` are the models that could not do what this one is asked."""
        described = self._door.describe(model, version)
        return Named(self._door, self, version, described, await self.described(described), passed)

    async def described(self, described: ModelDescription) -> LanguageModel:
        """The one version that this describes. Raises: NotReady, Unsupported."""
        info = info_of(described.signature)
        if info is None:
            name = described.name
            raise Unsupported(f"'{name}' is no language model; ask /v2/models/{name}/infer")
        if info.chats:
            return Relay(self._door, described, info, self._observe)
        return Session(self._door, described, info, await self._read(described), self._compiles, self._observe)

    async def _read(self, described: ModelDescription) -> Texts:
        key = _key(described)
        task = self._texts.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            options = described.config.get("options")
            template = str(options.get("chat_template", "")) if isinstance(options, dict) else ""
            free = bool(described.config.get("trust"))
            task = asyncio.create_task(asyncio.to_thread(read, Path(described.path), template, free))
            self._texts[key] = task
        try:
            return await asyncio.shield(task)  # others may wait for it too
        except (InvalidInput, LoadError) as error:
            raise NotReady(f"model '{described.name}' cannot be asked: {error.message}") from error

    def close(self) -> None:
        """Compiles no grammars any more."""
        self._compiles.close()

    def prune(self) -> None:
        """Forgets what is no longer served; to be called when versions come and go."""
        for key in list(self._texts):
            try:
                if _key(self._door.describe(key[0], str(key[1]))) == key:
                    continue
            except (NotFound, NotReady):
                pass
            self._texts.pop(key, None)


def _key(described: ModelDescription) -> _Key:
    return described.name, described.version, described.serial
