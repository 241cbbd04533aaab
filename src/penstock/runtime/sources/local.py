"""Models on this machine's disk: single files, numbered version folders, folders of models. Looked at again each poll.

Copies in progress. A version that is new, or whose files changed, may still be on its way. With `settle` it is offered
only when two polls in a row saw the same files; until then the old state of that version stays. The first poll takes
everything as it is. Best is to write under a hidden name and rename: what begins with a dot is not looked at.

Links are followed as long as they stay below the folder that was given (so `..data` links of mounted volumes work);
the given path may itself be a link to anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from penstock.core.errors import InvalidInput, LoadError, NotFound
from penstock.core.servable import Adapter
from penstock.runtime.artifact import fingerprint, place_of
from penstock.runtime.options import ModelOptions
from penstock.runtime.recognise import Found, adapters, look, options_for
from penstock.runtime.sources import WishedModel, WishedVersion

log = logging.getLogger("penstock.source")

Seen = dict[tuple[str, int], WishedVersion]


class LocalSource:
    """The Source. `models` are the models' options, or a function that gives them anew for each poll.

    An entry without a name stands for every model at its path, those that come later too, and takes what their
    `model.toml` says. An entry with a name was put together already and is taken as it is.
    """

    def __init__(
        self, models: Sequence[ModelOptions] | Callable[[], Sequence[ModelOptions]], *, settle: bool = False
    ) -> None:
        self._models = models
        self._settle = settle
        self._polled = False
        self._seen: Seen = {}  # as they were at the last poll
        self._offered: Seen = {}  # as they were last offered
        self._told: set[str] = set()
        self._plugs: dict[str, Mapping[str, Adapter]] = {}  # by the adapter that the user chose, "" being none

    def poll(self) -> Mapping[str, WishedModel]:
        """Every model and version there is now.

        Raises:
            NotFound, InvalidInput: a path has nothing that can be served, or two models have one name.
            LoadError: a folder cannot be read; at the first poll also a link that leads out.
        """
        seen: Seen = {}
        offered: Seen = {}
        wished: dict[str, WishedModel] = {}
        for entry in self._models() if callable(self._models) else self._models:
            found_here = self._look(entry)
            if entry.name and len(found_here) > 1:
                names = ", ".join(found.name for found in found_here)
                raise InvalidInput(f"{entry.path} holds several models ({names}), which cannot all be '{entry.name}'")
            for found in found_here:
                options = replace(entry, path=found.path) if entry.name else options_for(found, entry)
                if options.name in wished:
                    other = wished[options.name].options.path
                    raise InvalidInput(f"two models are called '{options.name}': {other} and {options.path}")
                versions = self._versions(options.name, found, Path(entry.path).expanduser(), seen, offered)
                if versions:
                    wished[options.name] = WishedModel(options, found.adapter, versions)
        self._seen, self._offered, self._polled = seen, offered, True
        return wished

    def _look(self, entry: ModelOptions) -> tuple[Found, ...]:
        try:
            if entry.adapter not in self._plugs:
                self._plugs[entry.adapter] = adapters(entry.adapter)
            return look(entry.path, self._plugs[entry.adapter], self._tell)
        except NotFound:
            # Taken away while we serve: then the model goes. A whole disk that is gone takes nothing away.
            if self._polled and Path(entry.path).expanduser().parent.is_dir():
                return ()
            raise

    def _versions(self, name: str, found: Found, root: Path, seen: Seen, offered: Seen) -> dict[int, WishedVersion]:
        versions: dict[int, WishedVersion] = {}
        for number, path in found.versions.items():
            key = (name, number)
            try:
                _contain(path, root)
                version = WishedVersion(number, path, fingerprint(_whole(path, found)))
            except LoadError as error:
                self._tell(error)
                continue
            seen[key] = version
            chosen: WishedVersion | None = version
            if self._settle and self._polled and version not in (self._seen.get(key), self._offered.get(key)):
                chosen = self._offered.get(key)
            if chosen is not None:
                versions[number] = offered[key] = chosen
        return versions

    def _tell(self, error: LoadError) -> None:
        """Stops a start; later, what serves goes on serving and the log tells once."""
        if not self._polled:
            raise error
        if str(error) not in self._told:
            self._told.add(str(error))
            log.warning("version_refused", extra={"error": str(error)})


def _whole(path: Path, found: Found) -> Path:
    """What to watch: the version's folder where there is one, because a model may read files beside it."""
    folder = path if path.is_dir() else path.parent
    return folder if path.exists() and folder.resolve() != Path(found.path).expanduser().resolve().parent else path


def _contain(path: Path, root: Path) -> None:
    place = place_of(path)
    if place is None or not root.is_dir():
        return  # a module's name, or one file that the user named
    if not place.resolve().is_relative_to(root.resolve()):
        raise LoadError(f"{path} leads out of {root} by a link; copy the files, or give their real folder")


plug = LocalSource
