"""Which language model a caller means: a model's name, `name:version-or-label`, or a LoRA adapter's name."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.door import Door
from penstock.core.errors import NotFound, NotReady, Unsupported
from penstock.core.language import LanguageModel
from penstock.core.nearest import nearest


@dataclass(frozen=True, slots=True)
class Found:
    """A language model, and the adapter of it that was named ("": none)."""

    model: LanguageModel
    adapter: str = ""


async def find(door: Door, name: str) -> Found:
    """What `name` names. An exact name wins over one with a version, and both over an adapter's.

    Raises: NotFound, NotReady; Unsupported when the model is no language model.
    """
    missing: NotFound
    try:
        return Found(await door.language(name))
    except NotFound as error:
        missing = error
    model, colon, version = name.rpartition(":")
    if colon and model and version:
        try:
            return Found(await door.language(model, version))
        except NotFound as error:
            if model in door.models():
                missing = error  # it says which versions there are
    models = await every(door)
    for found in models:
        if name in found.card.info.adapter_names:
            return Found(found, name)
    if str(missing) and model in door.models():
        raise missing
    names = [found.card.name for found in models] + [one for f in models for one in f.card.info.adapter_names]
    raise NotFound(f"the model {name[:80]!r} does not exist{nearest(name, names)}")


async def every(door: Door) -> list[LanguageModel]:
    """Each ready language model, by name."""
    found = []
    for name in door.models():
        try:
            found.append(await door.language(name))
        except (NotFound, NotReady, Unsupported):  # gone since it was listed, or of another kind
            continue
    return found
