"""Finds a user's model: imports `file.py:Name`, a folder or `package.module:Name`, and reads what it declares.

This runs user code, so only a worker process comes here. The file's folder goes onto `sys.path`, as it would be if the
user ran the file.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from penstock.core.declare import Declaration, declaration_of, declare
from penstock.core.errors import InvalidInput, LoadError

ENTRY_FILES = ("model.py", "__init__.py")  # what stands for a whole folder, in this order
RESERVED = ("parameters",)  # an argument of this name gets the request's parameters


def split(path: Path) -> tuple[str, str]:
    """The file, folder or module, and the name in it ("" when none was given): `model.py:Iris`, `pkg.models:Iris`."""
    text = str(path)
    place, colon, name = text.rpartition(":")
    return (place, name) if colon and name.isidentifier() else (text, "")


def entry_file(place: str) -> Path | None:
    """The Python file that `place` means: itself, or the one that stands for a folder; None if there is none."""
    path = Path(place)
    if path.suffix == ".py" and path.is_file():
        return path
    return next((path / name for name in ENTRY_FILES if (path / name).is_file()), None) if path.is_dir() else None


def find(path: Path, name: str = "") -> tuple[object, Path]:
    """The function or class that is the model, and the file it came from.

    Raises:
        LoadError: the module cannot be imported, or it is not clear which object is meant.
    """
    place, own_name = split(path)
    file = entry_file(place)
    module = _import_file(file) if file else _import_name(place)
    target = own_name or name
    if target:
        if not hasattr(module, target):
            raise LoadError(f"{place} has no {target!r}; it has {_listed(_candidates(module)) or 'no models'}")
        found = getattr(module, target)
        if not callable(found):
            raise LoadError(f"{target!r} in {place} is a {type(found).__name__}; a model is a function or a class")
    else:
        found = _only_model(module, place)
    return found, file or Path(str(getattr(module, "__file__", place)))


def declared(target: object) -> Declaration:
    """What the decorator says of `target` (or of its `predict` or `answer`), else what its annotations say.

    Raises:
        LoadError: a declaration in an annotation cannot be read.
    """
    methods = [getattr(target, name) for name in ("predict", "answer") if hasattr(target, name)]
    for place in (target, *methods):
        if (found := declaration_of(place)) is not None:
            return found
    functions = methods if inspect.isclass(target) else [target]
    return _annotated(functions[0]) if functions else Declaration()


def arguments_of(function: object) -> dict[str, inspect.Parameter]:
    """The parameters of a function or bound method that a request's inputs may fill."""
    signature = inspect.signature(function)  # type: ignore[arg-type]  # anything callable; refused by `find` otherwise
    return {name: parameter for name, parameter in signature.parameters.items() if name not in RESERVED}


def _import_file(file: Path) -> ModuleType:
    file = file.resolve()
    package = file.name == "__init__.py"
    folder, stem = (file.parent.parent, file.parent.name) if package else (file.parent, file.stem)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    loaded = sys.modules.get(stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    # A version folder is called "3" and a file may be called as an installed module is: neither may shadow another.
    taken = not stem.isidentifier() or loaded is not None or stem in sys.stdlib_module_names
    name = f"penstock_model_{zlib.crc32(str(file).encode()):08x}" if taken else stem
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(file.parent)] if package else None
    )
    if spec is None or spec.loader is None:
        raise LoadError(f"{file.name} is not a Python file that can be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        raise _told(error, file.name) from error
    return module


def _import_name(place: str) -> ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise LoadError(f"{place} is no Python file, no folder with {' or '.join(ENTRY_FILES)} and no module name")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        return importlib.import_module(place)
    except BaseException as error:
        raise _told(error, place) from error


def _told(error: BaseException, what: str) -> BaseException:
    """A LoadError that shows where user code failed; whoever wants the process to end (Ctrl-C) is obeyed."""
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        return error
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})" if trace else ""
    return LoadError(f"importing {what} failed: {type(error).__name__}: {error}{where}")


def _candidates(module: ModuleType) -> dict[str, object]:
    """The models that `module` itself defines: whatever is declared, and classes with `predict` or `answer`."""
    own: dict[str, object] = {
        name: item
        for name, item in vars(module).items()
        if not name.startswith("_") and getattr(item, "__module__", None) == module.__name__ and callable(item)
    }
    marked = {name: item for name, item in own.items() if declaration_of(item) is not None}
    classes: dict[str, object] = {
        name: item
        for name, item in own.items()
        if inspect.isclass(item) and (hasattr(item, "predict") or hasattr(item, "answer"))
    }
    return marked or classes or {name: item for name, item in own.items() if name == "predict"}


def _only_model(module: ModuleType, place: str) -> object:
    found = _candidates(module)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise LoadError(f"{place} has several models: {_listed(found)}; say which, such as {place}:{next(iter(found))}")
    raise LoadError(
        f"{place} has no model: mark a function or class with @penstock.model, give a class a `predict` method, "
        f"or name one: {place}:Name"
    )


def _listed(found: Mapping[str, object]) -> str:
    return ", ".join(sorted(found))


def _annotated(function: object) -> Declaration:
    """Annotations such as `x: "f4[n, 4]"` and `-> "i8[n]"` or `-> {"y": "i8[n]"}`; nothing if any argument has none.

    Annotations are read as text and never evaluated beyond literals.
    """
    try:
        signature = inspect.signature(function)  # type: ignore[arg-type]  # see arguments_of
    except (TypeError, ValueError):
        return Declaration()
    inputs: dict[str, str] = {}
    for name, parameter in signature.parameters.items():
        if name == "self" or name in RESERVED:
            continue
        text = _literal(parameter.annotation)
        if not isinstance(text, str) or "[" not in text:
            return Declaration()
        optional = parameter.default is not parameter.empty and not text.rstrip().endswith("?")
        inputs[name] = f"{text}?" if optional else text
    given = _literal(signature.return_annotation)
    outputs = {"output": given} if isinstance(given, str) and "[" in given else given
    if not isinstance(outputs, dict) or not all(isinstance(text, str) for text in outputs.values()):
        outputs = None
    try:
        return declare(inputs or None, outputs)
    except InvalidInput:
        # An annotation meant for a type checker, such as "list[int]", is no declaration.
        return Declaration()


def _literal(annotation: object) -> object:
    """The value of an annotation: itself, or what its source text says when annotations are kept as text."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return ast.literal_eval(annotation)
    except (ValueError, SyntaxError):
        return annotation
