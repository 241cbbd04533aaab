"""The graph that a file's text says, whichever dialect it is written in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from penstock.core.errors import InvalidInput
from penstock.graphs import kserve, native, seldon, triton
from penstock.graphs.definition import Graph

KINDS: Final[Mapping[str, Callable[[Mapping[str, object], str], Graph]]] = {
    "Graph": native.read,
    "InferenceGraph": kserve.read,
    "SeldonDeployment": seldon.read,
}
_LARGEST_CHARACTERS = 4 << 20
_KIND = re.compile(r"""^["']?kind["']?\s*:\s*["']?(\w+)|[{,]\s*"kind"\s*:\s*"(\w+)""", re.MULTILINE)


def is_graph(text: str) -> bool:
    """Whether the beginning of a YAML or JSON file looks like a graph's."""
    return any((match[1] or match[2]) in KINDS for match in _KIND.finditer(text))


def is_ensemble(text: str) -> bool:
    """Whether a config.pbtxt says that it is an ensemble."""
    return re.search(r"^\s*ensemble_scheduling\b", text, re.MULTILINE) is not None


def read(text: str, name: str) -> Graph:
    """The graph of a YAML or JSON file. `name` is its name unless the file says one.

    Raises:
        InvalidInput: it is no graph, or not as its dialect asks; the message names the place.
    """
    if len(text) > _LARGEST_CHARACTERS:
        raise InvalidInput(f"a graph's file has at most {_LARGEST_CHARACTERS} characters, this one {len(text)}")
    documents = [document for document in _documents(text) if document is not None]
    graphs = [each for each in documents if isinstance(each, Mapping) and each.get("kind") in KINDS]
    if len(graphs) != 1:
        kinds = [str(each.get("kind")) if isinstance(each, Mapping) else type(each).__name__ for each in documents]
        raise InvalidInput(
            f"the file holds {len(graphs)} graphs (it has {', '.join(kinds[:8]) or 'nothing'}); "
            f"one document with kind {', '.join(KINDS)} belongs there"
        )
    return KINDS[str(graphs[0]["kind"])](graphs[0], name)


def read_ensemble(text: str, name: str) -> Graph:
    """The graph of a Triton ensemble's config.pbtxt. Raises: InvalidInput."""
    if len(text) > _LARGEST_CHARACTERS:
        raise InvalidInput(f"a config.pbtxt has at most {_LARGEST_CHARACTERS} characters, this one {len(text)}")
    return triton.read(text, name)


def _documents(text: str) -> list[object]:
    import yaml  # takes 10 ms to import, which servers of models alone need not pay

    try:
        # Aliases let a few hundred characters stand for gigabytes, and a graph has no use for them.
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                line = "" if event.start_mark is None else f" in line {event.start_mark.line + 1}"
                raise InvalidInput(f"the file has an alias{line}; write the value out")
        return list(yaml.safe_load_all(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the file is no YAML: {error}") from None
