"""Groups of language models that share requests, as Titan Takeoff's clients name them.

A model's group is its option `consumer_group`; without one it is in `primary`. A request to a group goes to one of its
models that can do what is asked, the one with the fewest requests under way. A model's own name is a group of one.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.core.door import Door
from penstock.core.errors import NotFound, NotReady, Unsupported
from penstock.core.language import Card, LanguageModel
from penstock.core.model_names import every

PRIMARY = "primary"


def group_of(door: Door, model: LanguageModel) -> str:
    """The group that a model is in."""
    try:
        options = door.describe(model.card.name).config.get("options")
    except (NotFound, NotReady):  # gone since it was listed
        return PRIMARY
    return str(options.get("consumer_group", PRIMARY)) if isinstance(options, dict) else PRIMARY


async def groups(door: Door) -> dict[str, list[LanguageModel]]:
    """Every group with its models, by name."""
    found: dict[str, list[LanguageModel]] = {}
    for model in await every(door):
        found.setdefault(group_of(door, model), []).append(model)
    return dict(sorted(found.items()))


async def choose(door: Door, name: str, able: Callable[[Card], bool], task: str) -> LanguageModel:
    """The model of group `name` that is to answer. `task` says in an error what `able` looks for: "generate".

    Raises: NotFound when there is no such group; Unsupported when none of its models is able.
    """
    known = await groups(door)
    models = known.get(name) or [one for several in known.values() for one in several if one.card.name == name]
    if not models:
        raise NotFound(f"no consumer group or model {name[:80]!r}; there are {', '.join(known) or 'none'}")
    able_ones = [model for model in models if able(model.card)]
    if not able_ones:
        raise Unsupported(f"no model of {name!r} can {task}")
    if len(able_ones) == 1:
        return able_ones[0]
    busy = {one.name: one.in_flight for one in await door.statistics()}
    return min(able_ones, key=lambda model: busy.get(model.card.name, 0))
