"""Reads `penstock.yaml`: the deployments and tenants that there should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest

FILE = "penstock.yaml"
_TABLES = ("deployments", "tenants")
_LARGEST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Documents:
    """What a file says, by name. Paths in it are absolute."""

    deployments: Mapping[str, Mapping[str, object]]
    tenants: Mapping[str, Mapping[str, object]]


def read(path: Path) -> Documents:
    """The documents of a file. Relative paths in it are from its folder.

    Raises:
        InvalidInput: it cannot be read, is no YAML, or holds something else.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise InvalidInput(f"{path}: is larger than {_LARGEST_BYTES >> 20} MiB")
        data = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: is no YAML: {error}") from error
    if not isinstance(data, dict):
        raise InvalidInput(f"{path}: holds no table; write `deployments:` with a table for each name")
    for key in data:
        if key not in _TABLES:
            raise InvalidInput(
                f"{path}: there is no {key!r}{nearest(str(key), _TABLES)}; there are deployments, tenants"
            )
    deployments = {name: _placed(table, path.parent) for name, table in _tables(path, data, "deployments").items()}
    return Documents(deployments, _tables(path, data, "tenants"))


class _Loader(yaml.SafeLoader):
    """YAML without aliases (a short file could otherwise stand for a huge one) and without keys written twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.YAMLError(f"{name!r} is written twice in one table, line {key.start_mark.line + 1}")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _tables(path: Path, data: Mapping[str, object], key: str) -> dict[str, dict[str, object]]:
    found = data.get(key) or {}
    if not isinstance(found, dict):
        raise InvalidInput(f"{path}: {key} is {found!r}; write a table for each name")
    made = {}
    for name, table in found.items():
        if not isinstance(name, str) or not isinstance(table, dict):
            raise InvalidInput(f"{path}: {key}.{name} is {table!r}; write a table")
        made[name] = table
    return made


def _placed(table: Mapping[str, object], folder: Path) -> dict[str, object]:
    made = dict(table)
    for key in ("model", "graph", "requirements"):
        value = made.get(key)
        if isinstance(value, str) and value and "://" not in value:
            made[key] = str((folder / Path(value).expanduser()).absolute())
    return made
