"""A language model as protocols see it: an `Ask` in, `Event`s out, with a version's tokens between."""

from __future__ import annotations

from penstock.core.door import Door
from penstock.core.errors import Unsupported
from penstock.core.language import LanguageModel
from penstock.runtime.language.wire import info_of


class Sessions:
    """The language models behind one door. Tokenizers are read once for each version."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def open(self, model: str, version: str = "") -> LanguageModel:
        """See `core.door.Door.language`."""
        if info_of(self._door.signature(model, version)) is None:
            raise Unsupported(f"'{model}' is no language model; ask /v2/models/{model}/infer")
        raise NotImplementedError
