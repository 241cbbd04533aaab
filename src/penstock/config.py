"""Options, written once: name, type, default, unit and doc; flags, environment, file keys and docs derive from them.

A room keeps its options in one frozen dataclass whose fields are made by `option`. `resolve` fills such a class from
layers, strongest first (flags, environment, file), and remembers where each value came from. The rules:

- A key that no option has is refused, naming the nearest one: nothing that was written is silently without effect.
- `None` means unset. A value is checked against its type, choices and range wherever it comes from.
- Only this module reads the environment.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from penstock.core.coercion import Mismatch, coerce, describe
from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest

T = TypeVar("T")

PREFIX = "PENSTOCK_"
MODEL_PREFIX = "PENSTOCK_MODEL_"
FILE = "penstock.toml"

# Names in the environment that are no options of the server: where its file is, and what command-line clients use.
OTHER_NAMES = {
    "PENSTOCK_CONFIG": "the configuration file",
    "PENSTOCK_URL": "the server that client commands call",
    "PENSTOCK_FLEET": "the platform that client commands call: its state's folder, or the URL of its admin port",
    "PENSTOCK_FLEET_KEY": "the key of that admin port",
    "PENSTOCK_ENDPOINTS_URL": "where graphs and user code reach the platform's other endpoints",
    "PENSTOCK_ENDPOINTS_KEY": "the key for that",
}
OTHER_PREFIX = "PENSTOCK_UP_"  # options of `penstock up`, which reads and checks them itself

# Kubernetes and container links put a Service called `penstock…` into the environment of every pod under such names.
_SERVICE_LINK = re.compile(r".*(_SERVICE_(HOST|PORT)(_\w+)?|_PORT|_\d+_(TCP|UDP|SCTP)(_\w+)?)$")


def option(
    default: T,
    doc: str,
    *,
    unit: str = "",
    choices: tuple[str, ...] = (),
    secret: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    individual: bool = False,
) -> T:
    """A dataclass field that is an option.

    Args:
        default: `None` means unset.
        unit: "bytes" and "s" let text carry a unit (256MiB, 500ms); others are shown only.
        secret: never printed.
        minimum, maximum: the range of a number, or of every number of a list; both ends are allowed.
        individual: makes sense for one model only, so the environment and `[defaults]` cannot set it.
    """
    metadata = {
        "doc": doc, "unit": unit, "choices": choices, "secret": secret,
        "minimum": minimum, "maximum": maximum, "individual": individual,
    }  # fmt: skip
    if isinstance(default, (list, dict)):
        kind = type(default)
        made: Any = dataclasses.field(default_factory=lambda: kind(default), metadata=metadata, repr=not secret)
    else:
        made = dataclasses.field(default=default, metadata=metadata, repr=not secret)
    return made  # type: ignore[no-any-return]  # a field stands in for its value, as dataclasses.field does


@dataclass(frozen=True, slots=True)
class Option:
    """What `option` was told about one field, with the field's name and type."""

    name: str
    annotation: Any
    default: object
    doc: str
    unit: str
    choices: tuple[str, ...]
    secret: bool
    minimum: float | None
    maximum: float | None
    individual: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def allowed(self) -> str:
        """What may be written, for people."""
        text = " | ".join(self.choices) or describe(self.annotation, self.unit)
        if self.minimum is not None and self.maximum is not None:
            return f"{text}, {self.minimum:g} to {self.maximum:g}"
        if self.minimum is not None:
            return f"{text}, at least {self.minimum:g}"
        return text

    def read(self, value: object, where: str) -> object:
        """`value` with this option's type.

        Raises:
            InvalidInput: it has another type, is none of the choices or outside the range; names `where`.
        """
        try:
            result = coerce(value, self.annotation, self.unit)
        except Mismatch as mismatch:
            raise InvalidInput(f"{where}: {self.name} is {self._shown(value)}; write {mismatch}") from None
        if self.choices and result not in self.choices:
            near = nearest(str(result), self.choices)
            raise InvalidInput(f"{where}: {self.name} is {self._shown(value)}; one of {', '.join(self.choices)}{near}")
        for number in result if isinstance(result, tuple) else (result,):
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                low = self.minimum is not None and number < self.minimum
                if low or (self.maximum is not None and number > self.maximum):
                    raise InvalidInput(f"{where}: {self.name} is {self._shown(value)}; allowed is a {self.allowed}")
        return result

    def _shown(self, value: object) -> str:
        return "not shown here" if self.secret else repr(value)


def options_of(kind: type[Any]) -> Mapping[str, Option]:
    """The options of a dataclass by name, in order."""
    hints = typing.get_type_hints(kind)
    made: dict[str, Option] = {}
    for item in dataclasses.fields(kind):
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        made[item.name] = Option(item.name, hints[item.name], default, **item.metadata)
    return made


@dataclass(frozen=True, slots=True)
class Layer:
    """Values from one place. `origin` is that place, such as "file penstock.toml [server]"; `{flag}`, `{key}` and
    `{KEY}` in it stand for the option's flag and name."""

    origin: str
    values: Mapping[str, object]

    def where(self, key: str) -> str:
        flag = "--" + key.replace("_", "-")
        return self.origin.replace("{flag}", flag).replace("{key}", key).replace("{KEY}", key.upper())


@dataclass(frozen=True, slots=True)
class Resolved(Generic[T]):
    """An options object and, for each field, where its value came from ("default" when nobody set it)."""

    value: T
    origins: Mapping[str, str] = field(default_factory=dict)

    def given(self, name: str) -> bool:
        """Whether somebody set it, even to its default."""
        return self.origins.get(name, "default") != "default"


def resolve(kind: type[T], layers: Sequence[Layer]) -> Resolved[T]:
    """An options object of `kind`. Layers come strongest first; a value of None in one leaves it to the next.

    Every layer is read in full, so a wrong value is refused even where a stronger layer hides it.

    Raises:
        InvalidInput: an unknown key, a wrong type, a choice or a range missed; the first one found.
    """
    known = options_of(kind)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, "default")
    for layer in layers:
        for key, raw in layer.values.items():
            if key not in known:
                raise InvalidInput(f"{layer.where(key)}: there is no option {key!r}{nearest(key, known)}")
            if raw is None:
                continue
            value = known[key].read(raw, layer.where(key))
            if key not in values:
                values[key] = value
                origins[key] = layer.where(key)
    return Resolved(kind(**values), origins)


def environment_layers(server: type[Any], model: type[Any], environ: Mapping[str, str]) -> tuple[Layer, Layer]:
    """What the environment sets for the server (`PENSTOCK_HTTP_PORT`) and for every model (`PENSTOCK_MODEL_WORKERS`).

    Raises:
        InvalidInput: a `PENSTOCK_` name that nothing reads.
    """
    for_server: dict[str, object] = {}
    for_models: dict[str, object] = {}
    known: dict[str, tuple[dict[str, object], str]] = {}
    for name in options_of(server):
        known[PREFIX + name.upper()] = (for_server, name)
    for name, each in options_of(model).items():
        if not each.individual:
            known[MODEL_PREFIX + name.upper()] = (for_models, name)
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in OTHER_NAMES or variable.startswith(OTHER_PREFIX):
            continue
        if variable in known and not text.startswith(("tcp://", "udp://")):
            values, name = known[variable]
            values[name] = text
        elif not _SERVICE_LINK.fullmatch(variable):
            near = nearest(variable, [*known, *OTHER_NAMES])
            raise InvalidInput(f"environment {variable}: nothing reads this{near}; unset it, or see `penstock config`")
    origin = "environment " + PREFIX
    return Layer(origin + "{KEY}", for_server), Layer(origin + "MODEL_{KEY}", for_models)


def prefixed_layer(kind: type[Any], prefix: str, environ: Mapping[str, str]) -> Layer:
    """What the environment sets for options of `kind`, under names that begin with `prefix`.

    Raises:
        InvalidInput: a name with this prefix that nothing reads.
    """
    known = {prefix + name.upper(): name for name in options_of(kind)}
    for variable in environ:
        if variable.startswith(prefix) and variable not in known:
            raise InvalidInput(f"environment {variable}: nothing reads this{nearest(variable, known)}; unset it")
    origin = f"environment {prefix}{{KEY}}"
    return Layer(origin, {name: environ[variable] for variable, name in known.items() if variable in environ})


def data_folder(environ: Mapping[str, str]) -> Path:
    """Where a user's programs keep what lasts. Source: XDG Base Directory Specification, XDG_DATA_HOME."""
    given = environ.get("XDG_DATA_HOME", "")
    return Path(given) if given.startswith("/") else Path.home() / ".local" / "share"


def environment() -> Mapping[str, str]:
    """The process's environment; the one place that reads it."""
    return os.environ


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A parsed `penstock.toml`: its tables, unread as yet. `path` is None when there is no file."""

    path: Path | None = None
    server: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def layer(self, table: str, values: Mapping[str, object]) -> Layer:
        return Layer(f"file {self.path} [{table}]", values)


def read_file(path: Path) -> ConfigFile:
    """The tables `[server]`, `[defaults]` and `[models.NAME]` of a TOML file.

    Raises:
        InvalidInput: it cannot be read, is no TOML, or holds another table.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"file {path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also of numbers with too many digits, which tomllib lets out
        raise InvalidInput(f"file {path}: is no TOML: {error}") from error
    tables = ("server", "defaults", "models")
    for key in data:
        if key not in tables:
            near = nearest(key, tables)
            raise InvalidInput(
                f"file {path}: there is no table [{key}]{near}; there are [server], [defaults], [models.NAME]"
            )
    for title, value in _tables(data):
        if not isinstance(value, dict):
            raise InvalidInput(f"file {path}: {title} is {value!r}; write a table, such as [{title}]")
    return ConfigFile(path, data.get("server", {}), data.get("defaults", {}), data.get("models", {}))


def find_file(given: str | None, environ: Mapping[str, str], folder: Path) -> ConfigFile:
    """The file that a flag or `PENSTOCK_CONFIG` names, else `folder`'s `penstock.toml`, else an empty one.

    Raises:
        InvalidInput: as `read_file`.
    """
    named = given or environ.get("PENSTOCK_CONFIG")
    if named:
        return read_file(Path(named))
    return read_file(folder / FILE) if (folder / FILE).is_file() else ConfigFile()


def _tables(data: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield from data.items()
    models = data.get("models")
    if isinstance(models, dict):
        yield from ((f"models.{name}", table) for name, table in models.items())
