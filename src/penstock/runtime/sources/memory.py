"""Models named by the program that runs the server: the in-memory twin of a disk, for tests and for embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.core.errors import PenstockError
from penstock.runtime.options import ModelOptions
from penstock.runtime.recognise import adapters, look
from penstock.runtime.sources import WishedModel, WishedVersion


class MemorySource:
    """The Source. Begins with the models of `models`, as their paths are; `offer` and `withdraw` change it later."""

    def __init__(self, models: Sequence[ModelOptions] = ()) -> None:
        self._wished: dict[str, WishedModel] = {}
        self._failure: PenstockError | None = None
        for options in models:
            (found,) = look(options.path, adapters(options.adapter))
            self.offer(dataclasses.replace(options, name=options.name or found.name), found.adapter, found.versions)

    def poll(self) -> Mapping[str, WishedModel]:
        """What is offered now. Raises: what `fail` was told."""
        if self._failure is not None:
            raise self._failure
        return dict(self._wished)

    def offer(self, options: ModelOptions, adapter: str, versions: Mapping[int, Path], fingerprint: str = "1") -> None:
        """Offers exactly these versions of the model `options.name` from the next poll on. Another `fingerprint` says
        that the files changed."""
        self._wished[options.name] = WishedModel(
            options,
            adapter,
            {number: WishedVersion(number, path, fingerprint) for number, path in versions.items()},
        )

    def withdraw(self, name: str) -> None:
        """Offers the model no more. Raises: KeyError if it is not offered."""
        del self._wished[name]

    def fail(self, error: PenstockError | None) -> None:
        """Makes polls raise `error`, as a disk that is gone would; None ends it."""
        self._failure = error


plug = MemorySource
