"""Which files are graphs, and what they say. Only the beginning of a file is looked at to recognise it."""

from __future__ import annotations

from pathlib import Path

from penstock.core.errors import InvalidInput, LoadError, Unsupported
from penstock.core.servable import LoadContext, Servable
from penstock.graphs import reading
from penstock.graphs.definition import MODEL, Graph

ADAPTER = "graph"
_SUFFIXES = (".yaml", ".yml", ".json")
ENSEMBLE_FILE = "config.pbtxt"
_LOOKED_AT_BYTES = 64 << 10
_LARGEST_BYTES = 4 << 20


class GraphFiles:
    """Recognises graphs as adapters recognise models; loading one takes the server, so `graph_loading` does it."""

    name = ADAPTER
    inline_safe = False
    preload: tuple[str, ...] = ()

    def recognises(self, path: Path) -> bool:
        """A YAML or JSON file whose kind is a graph's, or a folder with an ensemble's config.pbtxt."""
        if path.is_dir():
            config = path / ENSEMBLE_FILE
            return config.is_file() and reading.is_ensemble(_beginning(config))
        return path.suffix in _SUFFIXES and path.is_file() and reading.is_graph(_beginning(path))

    def load(self, path: Path, context: LoadContext) -> Servable:
        """Raises: Unsupported, always."""
        raise Unsupported("a graph is no model that a worker could load")


def read(path: Path, name: str) -> Graph:
    """The graph at `path`. Raises: LoadError that names the file."""
    file = path / ENSEMBLE_FILE if path.is_dir() else path
    try:
        if file.stat().st_size > _LARGEST_BYTES:
            raise LoadError(f"{file.name} has more than {_LARGEST_BYTES} bytes, which is no graph")
        text = file.read_text(encoding="utf-8")
        return reading.read_ensemble(text, path.resolve().name) if path.is_dir() else reading.read(text, name)
    except InvalidInput as error:
        raise LoadError(f"{file.name}: {error.message}") from error
    except (OSError, ValueError) as error:
        raise LoadError(f"{file.name} cannot be read: {error}") from error


def needs(path: Path, name: str) -> tuple[str, ...]:
    """The models that it asks in the same server, as far as they are there; none where the file cannot be read, which
    loading it will tell."""
    try:
        return read(path, name).models()
    except LoadError:
        return ()


def elsewhere(path: Path, name: str) -> tuple[str, ...]:
    """Whom the graph may ask besides models that must be in the same server, each once; none where the file cannot be
    read, which loading it will tell."""
    try:
        targets = [step.target for _, step in read(path, name).calls()]
    except LoadError:
        return ()
    return tuple(dict.fromkeys(str(target) for target in targets if target.kind != MODEL))


def _beginning(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(_LOOKED_AT_BYTES).decode(errors="replace")
