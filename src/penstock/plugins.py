"""Finds plugs: a module in a plug folder, a packaging entry point, or `module:attribute` written in config."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil

from penstock.core.errors import InvalidInput, NotFound


@functools.cache
def _entry_points(folder: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Those of a group. Read once: it means opening a file of every installed package, models are looked at every two
    seconds, and that took 2 to 4 % of a busy server's processor time."""
    return tuple(importlib.metadata.entry_points(group=folder))


def names(folder: str) -> list[str]:
    """The names of a plug folder's built-in plugs and of third parties' entry points for it, sorted.

    `folder` is a package such as "penstock.runtime.adapters"; third parties use it as their entry point group.
    """
    package = importlib.import_module(folder)
    built_in = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
    return sorted(built_in | {point.name for point in _entry_points(folder)})


def load(folder: str, name: str) -> object:
    """The plug called `name`: `folder.name.plug`, an entry point, or the object that "module:attribute" names.

    Raises:
        NotFound: no plug of that name; the message lists the known ones.
        InvalidInput: "module:attribute" cannot be imported.
    """
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise InvalidInput(f"cannot import plug {name!r}: {error}") from error
    for point in _entry_points(folder):
        if point.name == name:
            return point.load()
    if name.startswith("_") or name not in names(folder):
        raise NotFound(f"no plug {name!r} in {folder}; there are {', '.join(names(folder))}")
    return importlib.import_module(f"{folder}.{name}").plug
