"""From what the user wrote, in every place it may be written, to the options of one server and its models.

Strongest first, for the server: flags, environment, file `[server]`. For a model: flags, environment, file
`[models.NAME]`, what its own files say (a foreign repository's settings), file `[defaults]`. Nothing here reads the
environment or parses a file: `config` does. `assemble` is handed all it looks at; `effective` looks for itself.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penstock import config
from penstock.config import ConfigFile, Layer, Resolved, environment_layers, options_of, resolve
from penstock.core.errors import InvalidInput, PenstockError
from penstock.runtime.options import ModelOptions, ServerOptions, check_model, check_server
from penstock.runtime.recognise import recognise, safe_name

log = logging.getLogger("penstock.assemble")

Recognise = Callable[[str, str], Sequence[ModelOptions]]
"""What a path holds, for an adapter or "" for any: one entry per model. Raises NotFound, InvalidInput."""


@dataclass(frozen=True, slots=True)
class Written:
    """What one start of a server was given. `origin` names the place of `server` and `model`: flags, or Python.

    `paths` are models to serve, `trust` those of them whose pickled files may be opened. `server` and `model` are
    option values, as text or typed; None leaves an option unset.
    """

    paths: Sequence[str] = ()
    server: Mapping[str, object] = field(default_factory=dict)
    model: Mapping[str, object] = field(default_factory=dict)
    trust: Sequence[str] = ()
    origin: str = "flag {flag}"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One server's effective options, each with its origin. Models in the order given, then the file's."""

    server: Resolved[ServerOptions]
    models: tuple[Resolved[ModelOptions], ...]


def effective(written: Written, file: str | None = None, entries_of: Recognise = recognise) -> Configuration:
    """The effective options of a server started here and now: with this process's environment, and with the named file
    or the working directory's `penstock.toml`.

    Raises:
        InvalidInput, NotFound: as `assemble`, and the file cannot be read.
    """
    environ = config.environment()
    return assemble(written, config.find_file(file, environ, Path()), environ, entries_of)


class Offers:
    """The models' options anew at each call: folders may have got models since the start. Never raises: a running
    server goes on with the options that it had, and the source finds out what is wrong with a model's own files."""

    def __init__(self, written: Written, file: str | None, first: Configuration) -> None:
        self._written = written
        self._file = file
        self._last = [model.value for model in first.models]
        self._trouble = ""
        self._roots: dict[str, str] = {}  # model's path -> the path given that it was found below
        self._outside: set[str] = set()

    def __call__(self) -> list[ModelOptions]:
        """One entry per model; one whose own settings cannot be read has those it had, or none."""
        broken: set[str] = set()

        def entries_of(path: str, adapter: str) -> list[ModelOptions]:
            problems: list[str] = []
            try:
                found = recognise(path, adapter, lambda child, _: problems.append(child))
            except (PenstockError, OSError):
                last = [model for model in self._last if model.path == path or model.path.startswith(f"{path}/")]
                if not last:
                    raise
                broken.update(model.path for model in last)
                return last
            broken.update(problems)
            entries = [*found, *(ModelOptions(name=safe_name(Path(child).stem), path=child) for child in problems)]
            self._roots.update({entry.path: path for entry in entries})
            return entries

        try:
            models = [model.value for model in effective(self._written, self._file, entries_of).models]
        except (PenstockError, OSError) as error:
            if str(error) != self._trouble:
                log.warning("configuration_not_taken", extra={"error": str(error)})
            self._trouble = str(error)
            return self._inside()
        before = {model.path: model for model in self._last}
        self._last = [before.get(model.path, model) if model.path in broken else model for model in models]
        self._trouble = ""
        return self._inside()

    def _inside(self) -> list[ModelOptions]:
        """The last models without those whose place has become a link that leads out of the folder given. The source
        would follow it: it takes each entry's path for one that somebody wrote."""
        outside = {model.path for model in self._last if not self._is_inside(model.path)}
        for path in outside - self._outside:
            log.warning("model_refused", extra={"error": f"{path} leads out of {self._roots[path]} by a link"})
        self._outside = outside
        return [model for model in self._last if model.path not in outside]

    def _is_inside(self, path: str) -> bool:
        root = self._roots.get(path, path)
        return root == path or Path(path).expanduser().resolve().is_relative_to(Path(root).expanduser().resolve())


@dataclass(frozen=True, slots=True)
class _Found:
    """One model before its options are put together."""

    options: ModelOptions
    origin: str
    trusted_by: str  # the --trust value that names it, or ""


def assemble(written: Written, file: ConfigFile, environ: Mapping[str, str], entries_of: Recognise) -> Configuration:
    """The effective options.

    Raises:
        InvalidInput: an option is unknown, wrong, or cannot take effect; two models share a name; a table of the file
            or a trusted path belongs to no model.
        NotFound: a path is not there.
    """
    from_server_env, from_model_env = environment_layers(ServerOptions, ModelOptions, environ)
    server = resolve(
        ServerOptions, [Layer(written.origin, written.server), from_server_env, file.layer("server", file.server)]
    )
    check_server(server)

    flags = {name: value for name, value in written.model.items() if value is not None}
    adapter = str(flags.get("adapter") or from_model_env.values.get("adapter") or "")
    found = list(_find(written, file, adapter, entries_of))
    _check_individual(flags, found, written.origin)
    _check_defaults(file)
    _check_trust(written.trust, found)
    models = []
    for each in found:
        name = str(flags.get("name", each.options.name))
        layers = [Layer(written.origin, flags)]
        if each.trusted_by:
            layers.append(Layer(f"{Layer(written.origin, {}).where('trust')} {each.trusted_by}", {"trust": True}))
        table = {key: value for key, value in file.models.get(name, {}).items() if key != "path"}
        layers += [
            from_model_env,
            file.layer(f"models.{name}", table),
            Layer(each.origin, _not_default(each.options)),
            file.layer("defaults", file.defaults),
        ]
        model = resolve(ModelOptions, layers)
        check_model(model)
        models.append(model)
    _check_names(models, file)
    return Configuration(server, tuple(models))


def _find(written: Written, file: ConfigFile, adapter: str, entries_of: Recognise) -> Iterator[_Found]:
    """Every model that a path given, or a table of the file, leads to."""
    names = set()
    usual = adapter or str(file.defaults.get("adapter") or "")
    for path in written.paths:
        for options in entries_of(path, usual):
            names.add(str(written.model.get("name") or options.name))
            yield _Found(options, f"path {path}", _trusted(written.trust, path, options.path))
    for name, table in file.models.items():
        written_path = table.get("path")
        if written_path is None or name in names:
            continue
        if not isinstance(written_path, str):
            raise InvalidInput(f"file {file.path} [models.{name}]: path is {written_path!r}; write text")
        place = str((file.path or Path()).parent / written_path)
        entries = entries_of(place, adapter or str(table.get("adapter") or usual))
        if len(entries) != 1:
            several = ", ".join(entry.name for entry in entries) or "none"
            raise InvalidInput(
                f"file {file.path} [models.{name}]: {written_path} holds several models ({several}); name one's "
                "folder, or give the whole folder to `penstock serve`"
            )
        options = dataclasses.replace(entries[0], name=name)
        yield _Found(options, f"file {file.path} [models.{name}]", _trusted(written.trust, place, options.path))


def _trusted(trust: Sequence[str], *paths: str) -> str:
    return next((each for each in trust if any(_same(each, path) for path in paths)), "")


def _same(one: str, other: str) -> bool:
    """Whether two paths, each perhaps with `:Name` behind it, are the same place."""
    return bool(one and other) and (one == other or Path(one).resolve() == Path(other).resolve())


def _not_default(options: ModelOptions) -> Mapping[str, object]:
    return {
        name: value
        for name, each in options_of(ModelOptions).items()
        if (value := getattr(options, name)) != each.default
    }


def _check_individual(flags: Mapping[str, object], found: Sequence[_Found], origin: str) -> None:
    if len(found) == 1:
        return
    for name, option in options_of(ModelOptions).items():
        if option.individual and name in flags:
            where = Layer(origin, {}).where(name)
            raise InvalidInput(
                f"{where}: is for one model, and there are {len(found)}; write it in the file's [models.NAME]"
            )


def _check_defaults(file: ConfigFile) -> None:
    for name, option in options_of(ModelOptions).items():
        if option.individual and name in file.defaults:
            raise InvalidInput(f"file {file.path} [defaults]: {name} is for one model; write it in [models.NAME]")


def _check_trust(trust: Sequence[str], found: Sequence[_Found]) -> None:
    for path in trust:
        if not any(each.trusted_by and _same(each.trusted_by, path) for each in found):
            served = ", ".join(each.options.path for each in found) or "nothing"
            raise InvalidInput(f"trust: {path} is none of the models served ({served}); name a model's own path")


def _check_names(models: Sequence[Resolved[ModelOptions]], file: ConfigFile) -> None:
    places: dict[str, str] = {}
    for model in models:
        name, path = model.value.name, model.value.path
        if name in places:
            raise InvalidInput(f"two models are called '{name}': {places[name]} and {path}; rename one with name")
        places[name] = path
    for name in file.models:
        if name not in places:
            raise InvalidInput(
                f"file {file.path} [models.{name}]: has no path, and no path given holds a model '{name}' "
                f"({', '.join(places) or 'there are none'}); add path, or remove the table"
            )
