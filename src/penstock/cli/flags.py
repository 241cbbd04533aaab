"""Flags made from options dataclasses: an option is written once, and its flag, help text and default follow."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_origin

import typer

from penstock.config import Option, options_of

# Options that have a place of their own on the command line: PATH arguments and `--trust PATH`.
ELSEWHERE = frozenset({"path", "trust"})


def with_options(**kinds: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator for a command: adds the flags of each dataclass, and hands their values over as one dict per
    keyword, by option name, with None for flags not given.

    `@with_options(server=ServerOptions)` calls the command with `server={"http_port": "0", "host": None, …}`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name not in kinds]
        taken = {parameter.name for parameter in own}
        homes: dict[str, str] = {}
        made = []
        for keyword, kind in kinds.items():
            for option in options_of(kind).values():
                if option.name not in ELSEWHERE and option.name not in taken:
                    homes[option.name] = keyword
                    made.append(_parameter(option, f"{keyword.capitalize()} options"))

        def run(**given: Any) -> None:
            groups: dict[str, dict[str, object]] = {keyword: {} for keyword in kinds}
            for name, keyword in homes.items():
                groups[keyword][name] = _as_text(given.pop(name))
            command(**given, **groups)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + made
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect.signature
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(option: Option, panel: str) -> inspect.Parameter:
    """One flag. Everything but a switch arrives as text: `config` reads it, so that errors are the same everywhere."""
    many = get_origin(option.annotation) is tuple or _is_mapping(option.annotation)
    if option.annotation is bool:
        kind: Any = bool | None
        declaration = f"{option.flag}/--no-{option.flag[2:]}"
        metavar = None
    else:
        kind = list[str] | None if many else str | None
        declaration = option.flag
        metavar = _metavar(option)
    info = typer.Option(
        declaration,
        help=option.doc + _default(option),
        metavar=metavar,
        show_default=False,
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, info]
    )


def _metavar(option: Option) -> str:
    if option.choices:
        return "|".join(option.choices)
    if _is_mapping(option.annotation):
        return "NAME=VALUE"
    if option.unit == "bytes":
        return "SIZE"
    if option.unit == "s":
        return "SECONDS"
    kinds = str(option.annotation)
    return "NUMBER" if "int" in kinds or "float" in kinds else "TEXT"


def _default(option: Option) -> str:
    if option.default in (None, "", (), {}):
        return ""
    return f" [default: {shown(option, option.default)}]"


def shown(option: Option, value: object) -> str:
    """A value as one would write it on the command line: `256MiB`, `true`, `stable=3`; secrets as `…`."""
    if value is None:
        return ""
    if option.secret:
        return "…"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if option.unit == "bytes" and isinstance(value, int):
        return _size(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(value: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value >= 1 << shift and value % (1 << shift) == 0:
            return f"{value >> shift}{unit}"
    return str(value)


def _as_text(value: object) -> object:
    """What a flag may give: a switch, a text, or several texts that stand for one list."""
    if isinstance(value, (list, tuple)):
        return ",".join(value) if value else None
    return value


def _is_mapping(annotation: Any) -> bool:
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)
