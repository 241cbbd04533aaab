"""The option that names another model for what a language model's engine lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from penstock.core.errors import LoadError
from penstock.core.nearest import nearest
from penstock.runtime.language.defaults import LANGUAGE
from penstock.runtime.options import ModelOptions

FALLBACK = "fallback_model"


class Wished(Protocol):
    """A model that is to be in this server."""

    @property
    def options(self) -> ModelOptions: ...

    @property
    def adapter(self) -> str: ...


def fallback_of(config: Mapping[str, object]) -> str:
    """The model that is asked for what this one's engine lacks; "" is none. `config` are a model's options."""
    options = config.get("options")
    return str(options.get(FALLBACK) or "") if isinstance(options, Mapping) else ""


def check_fallback(name: str, models: Mapping[str, Wished]) -> None:
    """Nothing, when the model has no fallback, or one that may become ready.

    Raises:
        LoadError: its fallback is not in this server or no language model, or leads back to it.
    """
    passed = [name]
    while fallback := str(models[passed[-1]].options.options.get(FALLBACK) or ""):
        if fallback == name:
            raise LoadError(f"{FALLBACK} leads back to the model: {' → '.join((*passed, name))}")
        found = models.get(fallback)
        if found is None or found.adapter not in (LANGUAGE, ""):  # "": why it cannot be loaded is told of itself
            others = sorted(other for other, one in models.items() if one.adapter == LANGUAGE and other not in passed)
            raise LoadError(
                f"{FALLBACK} = {fallback!r} of '{passed[-1]}' is "
                f"{'not in this server' if found is None else 'no language model'}{nearest(fallback, others)}; "
                f"other language models here: {', '.join(others[:10]) or 'none'}",
                shortage=True,  # it may come
            )
        if fallback in passed:
            return  # a circle that does not hold this model: those in it are refused
        passed.append(fallback)
