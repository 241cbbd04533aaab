"""What `penstock serve PATH` was given: a model file, numbered versions, a folder of models, or Python code.

    iris.onnx                    one model "iris", version 1
    fraud/3/model.onnx           one model "fraud", version 3 (give `fraud`)
    fraud/model.onnx             one model "fraud", version 1 (give `fraud`)
    models/{fraud/…, iris.onnx}  several models (give `models`)
    app.py:Sentiment             one Python model "Sentiment"; a folder with `model.py` is one too
    package.module:Name          the same from an installed package
    echo                         answers with its inputs

A model's folder may hold a `model.toml` with options of that model.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from penstock import plugins
from penstock.config import Layer, options_of, resolve
from penstock.core.errors import InvalidInput, LoadError, NotFound, PenstockError
from penstock.core.servable import Adapter
from penstock.runtime.artifact import ignored
from penstock.runtime.graphs.files import ADAPTER as GRAPH
from penstock.runtime.graphs.files import GraphFiles
from penstock.runtime.options import ModelOptions

ADAPTERS = "penstock.runtime.adapters"
SETTINGS = "model.toml"
USUAL_STEM = "model"  # of several model files in one folder, this one is meant
# What an artifact may not say of itself: where and what it is, and that it is to be trusted.
_FORBIDDEN = {
    "name": "the folder's name is the model's name",
    "path": "the folder is the model",
    "trust": "a model cannot vouch for itself; use --trust or penstock.toml",
}
_BESIDE = (".py", ".toml", ".md", ".pbtxt")  # files beside models that are none, whatever an adapter says
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # as Triton: digits that do not begin with 0


OnProblem = Callable[[str, PenstockError], None]
"""Hears of one model in a folder of models that cannot be offered: its path, and why."""


def _raise(path: str, error: PenstockError) -> None:
    raise error


@dataclass(frozen=True, slots=True)
class Found:
    """One model on a disk. `versions` lead to what the adapter loads: a file, a folder, or `file.py:Name`."""

    name: str
    path: str
    adapter: str
    versions: Mapping[int, Path]
    settings: Mapping[str, object]  # of its model.toml, checked


def recognise(path: str, adapter: str = "", on_problem: OnProblem = _raise) -> tuple[ModelOptions, ...]:
    """The options of each model at `path`: name, path, and what its `model.toml` says; in the order of names.

    Raises: as `look`.
    """
    return tuple(options_for(found, ModelOptions()) for found in look(path, adapters(adapter), on_problem))


def options_for(found: Found, template: ModelOptions) -> ModelOptions:
    """`template` for one model found: where it still has the default, the model's own settings hold."""
    own = {
        key: value
        for key, value in found.settings.items()
        if getattr(template, key) == options_of(ModelOptions)[key].default
    }
    changes: dict[str, object] = {**own, "name": template.name or found.name, "path": found.path}
    return dataclasses.replace(template, **changes)  # type: ignore[arg-type]  # checked by `resolve` in `_settings`


def adapters(name: str = "") -> Mapping[str, Adapter]:
    """The adapter plugs by name: the one called `name`, or all. Finding them takes milliseconds: keep the answer.

    Raises:
        NotFound: there is no such adapter.
    """
    if name == GRAPH:
        return {GRAPH: GraphFiles()}
    names = [name] if name else plugins.names(ADAPTERS)
    found = {each: cast(Adapter, plugins.load(ADAPTERS, each)) for each in names}
    return found if name else {**found, GRAPH: GraphFiles()}


def look(path: str, plugs: Mapping[str, Adapter], on_problem: OnProblem = _raise) -> tuple[Found, ...]:
    """Every model at `path` that one of `plugs` loads, by name; a single plug is one the user chose, and is believed.
    One model of several that cannot be offered is left out when `on_problem` returns: a broken one does not take its
    neighbours with it.

    Raises:
        NotFound: there is nothing at `path`.
        InvalidInput: it holds no model, or it is not clear which file is the model.
        LoadError: it cannot be read, or what `on_problem` raises.
    """
    place = Path(path).expanduser()
    if not place.exists():
        return (_elsewhere(path, plugs),)
    if place.is_file():
        return (_one(place.stem, path, _which(place, plugs), {1: place}, {}),)
    if (found := _in_folder(place, path, plugs)) is not None:
        return (found,)
    problems: list[str] = []

    def heard(child: str, error: PenstockError) -> None:
        on_problem(child, error)
        problems.append(child)

    children = sorted(_children(place, path, plugs, heard), key=lambda found: found.name)
    if not children and not problems:
        raise InvalidInput(f"{path} holds no model. Looked at: {_seen(place)}. {_allowed(plugs)}")
    names = [found.name for found in children]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        both = " and ".join(found.path for found in children if found.name == twice[0])
        raise InvalidInput(f"two models are called '{twice[0]}': {both}; rename one")
    return tuple(children)


def safe_name(text: str) -> str:
    """`text` as a model's name: letters, digits, `_`, `.` and `-`, as every protocol's URLs can carry."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("._-") or "model"


def _elsewhere(path: str, plugs: Mapping[str, Adapter]) -> Found:
    """What is no file of its own: `echo`, `file.py:Name`, `package.module:Name`."""
    place, _, name = path.rpartition(":")
    if place.endswith(".py") and not Path(place).expanduser().is_file():
        raise NotFound(f"there is no file {place}")
    for adapter, plug in plugs.items():
        if plug.recognises(Path(path)):
            return _one(name or path, path, adapter, {1: Path(path)}, {})
    raise NotFound(f"there is nothing at {path}. {_allowed(plugs)}")


def _name_of(folder: Path) -> str:
    """The folder's own name; in Hugging Face's cache, where that is a commit, the repository's without its owner."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return folder.name


def _in_folder(folder: Path, path: str, plugs: Mapping[str, Adapter], child: bool = False) -> Found | None:
    """The one model that `folder` is, or None: it holds numbered versions, is a Python model, or holds one file."""
    name = _name_of(folder.resolve())
    settings = _settings(folder)
    if "adapter" in settings:
        plugs = adapters(str(settings["adapter"]))
    if GRAPH in plugs and plugs[GRAPH].recognises(folder):  # a Triton ensemble: its version folders are empty
        number = max((each for each, _ in _versions(folder)), default=1)
        return _one(name, path, GRAPH, {number: folder}, settings)
    if numbers := _versions(folder):
        versions = {number: artifact for number, part in numbers if (artifact := _artifact(part, plugs)) is not None}
        if not versions:
            if child:
                return None  # its files are still on their way
            seen = ", ".join(f"{part.name}/ ({_seen(part)})" for _, part in numbers)
            raise InvalidInput(f"no version of {path} holds a model. Looked at: {seen}. {_allowed(plugs)}")
        newest = _which(versions[max(versions)], plugs)
        same = {number: artifact for number, artifact in versions.items() if _which(artifact, plugs) == newest}
        return _one(name, path, newest, same, settings)
    if any(plug.recognises(folder) for plug in plugs.values()):
        return _one(name, path, _which(folder, plugs), {1: folder}, settings)
    files = _model_files(folder, plugs)
    if not child and not any(file.stem == USUAL_STEM for file in files):
        return None
    artifact = _artifact(folder, plugs)
    return None if artifact is None else _one(name, path, _which(artifact, plugs), {1: artifact}, settings)


def _children(folder: Path, path: str, plugs: Mapping[str, Adapter], on_problem: OnProblem) -> Iterator[Found]:
    root = folder.resolve()
    for entry in _visible(folder):
        below = f"{path.rstrip('/')}/{entry.name}"
        try:
            if not entry.resolve().is_relative_to(root):
                raise LoadError(f"{below} leads out of {path} by a link; copy the files, or give their real folder")
            found = _child(entry, below, plugs)
        except PenstockError as error:
            on_problem(below, error)
        except OSError as error:
            on_problem(below, LoadError(f"cannot read {below}: {error.strerror}"))
        else:
            if found is not None:
                yield found


def _child(entry: Path, path: str, plugs: Mapping[str, Adapter]) -> Found | None:
    if entry.is_dir():
        return _in_folder(entry, path, plugs, child=True)
    if entry.suffix not in _BESIDE and (adapter := _recogniser(entry, plugs)):
        return _one(entry.stem, path, adapter, {1: entry}, {})
    return None


def _artifact(folder: Path, plugs: Mapping[str, Adapter]) -> Path | None:
    """What in a version's folder is the model: the folder itself, its one model file, or the one called `model`."""
    if any(plug.recognises(folder) for plug in plugs.values()):
        return folder
    files = _model_files(folder, plugs)
    if len(files) > 1:
        usual = [file for file in files if file.stem == USUAL_STEM]
        if len(usual) != 1:
            names = ", ".join(file.name for file in files)
            raise InvalidInput(f"{folder} holds several models ({names}); call the one that is meant {USUAL_STEM}.*")
        files = usual
    return files[0] if files else None


def _model_files(folder: Path, plugs: Mapping[str, Adapter]) -> list[Path]:
    """Files that are models. Python files beside them are not: they train, test or help more often than they serve."""
    files = [entry for entry in _visible(folder) if entry.is_file() and entry.suffix not in _BESIDE]
    known = [file for file in files if _recogniser(file, plugs)]
    return files if not known and len(plugs) == 1 else known  # an adapter that was chosen is believed


def _versions(folder: Path) -> list[tuple[int, Path]]:
    return sorted(
        (int(part.name), part) for part in _visible(folder) if _VERSION.fullmatch(part.name) and part.is_dir()
    )


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not ignored(entry.name))
    except OSError as error:
        raise LoadError(f"cannot look into {folder}: {error.strerror}") from error


def _recogniser(path: Path, plugs: Mapping[str, Adapter]) -> str:
    """The name of the adapter that recognises `path`, or ""."""
    found = []
    for name, plug in plugs.items():
        try:
            if plug.recognises(path):
                found.append(name)
        except OSError:  # unreadable, or gone a moment ago
            continue
    if len(found) > 1:
        raise InvalidInput(f"{path} could be for {' or '.join(found)}; choose with --adapter")
    return found[0] if found else ""


def _which(path: Path, plugs: Mapping[str, Adapter]) -> str:
    name = _recogniser(path, plugs)
    if not name and len(plugs) == 1:
        return next(iter(plugs))  # the user chose it and knows better than the file's name
    if not name:
        raise InvalidInput(f"{path} is not recognised as a model. {_allowed(plugs)}")
    return name


def _one(name: str, path: str, adapter: str, versions: Mapping[int, Path], settings: Mapping[str, object]) -> Found:
    return Found(safe_name(name), path, str(settings.get("adapter") or adapter), versions, settings)


def _settings(folder: Path) -> Mapping[str, object]:
    """The options in a folder's `model.toml`; {} without one.

    Raises:
        InvalidInput: it is no TOML, or holds an option that is unknown, wrong or not a model's own to set.
    """
    file = folder / SETTINGS
    if not file.is_file():
        return {}
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also of numbers with too many digits
        raise InvalidInput(f"file {file}: is no TOML: {error}") from error
    for key, reason in _FORBIDDEN.items():
        if key in data:
            raise InvalidInput(f"file {file}: {key} cannot be set here: {reason}")
    if ":" in str(data.get("adapter", "")):
        raise InvalidInput(f"file {file}: adapter cannot be code here; name a plug, or set it in penstock.toml")
    value = resolve(ModelOptions, [Layer(f"file {file}", data)]).value
    return {key: getattr(value, key) for key in data}


def _seen(folder: Path) -> str:
    names = [entry.name + ("/" if entry.is_dir() else "") for entry in _visible(folder)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) + more) or "an empty folder"


def _allowed(plugs: Mapping[str, Adapter]) -> str:
    if len(plugs) == 1:
        return f"The adapter {next(iter(plugs))} was asked for"
    return (
        "A model is a file (.onnx, .skops, .ubj or .json of XGBoost, .txt of LightGBM, .cbm or .json of CatBoost, "
        ".pkl or .joblib with --trust), a folder with one such file or with model.py, a folder of numbered versions "
        "(1/, 2/) or of models, a graph (.yaml), file.py:Name, or package.module:Name; "
        "--adapter names the adapter for other files"
    )
