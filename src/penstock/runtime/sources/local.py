"""Models on this machine's disk: single files, numbered version folders, folders of models. Looked at again each poll.

Copies in progress. A version that is new, or whose files changed, may still be on its way. With `settle` it is offered
only when two polls in a row saw the same files; until then the old state of that version stays. The first poll takes
everything as it is. Best is to write under a hidden name and rename: what begins with a dot is not looked at.

Trouble. At the first poll anything wrong ends the start. Later, a model whose files cannot be read or understood is
offered as it was before, with the reason; the models beside it are looked at as ever.

Links are followed as long as they stay below the folder that was given (so `..data` links of mounted volumes work);
the given path may itself be a link to anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from penstock.core.errors import InvalidInput, LoadError, NotFound, PenstockError
from penstock.core.servable import Adapter
from penstock.runtime.artifact import fingerprint, place_of
from penstock.runtime.graphs.files import ADAPTER as GRAPH
from penstock.runtime.graphs.files import needs
from penstock.runtime.language.defaults import LANGUAGE
from penstock.runtime.language.fallback import FALLBACK
from penstock.runtime.options import ModelOptions
from penstock.runtime.recognise import Found, adapters, look, options_for, safe_name
from penstock.runtime.sources import WishedModel, WishedVersion

log = logging.getLogger("penstock.source")


@dataclass(slots=True)
class _Poll:
    """What one poll found. Versions are by (model, number)."""

    seen: dict[tuple[str, int], WishedVersion] = field(default_factory=dict)  # as they are
    offered: dict[tuple[str, int], WishedVersion] = field(default_factory=dict)  # as they are offered
    wished: dict[str, WishedModel] = field(default_factory=dict)
    entries: dict[str, str] = field(default_factory=dict)  # by model: the path given, at which it was found
    told: set[str] = field(default_factory=set)  # what is wrong


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
        self._last: _Poll | None = None
        self._plugs: dict[str, Mapping[str, Adapter]] = {}  # by the adapter that the user chose, "" being none

    def poll(self) -> Mapping[str, WishedModel]:
        """Every model and version there is now.

        Raises:
            NotFound, InvalidInput, LoadError: at the first poll: a path has nothing that can be served, or cannot be
                read. Later only when two models have one name.
        """
        now = _Poll()
        for entry in self._models() if callable(self._models) else self._models:
            try:
                found_here = self._look(entry, now)
            except OSError as error:
                self._keep(entry.path, entry.name, LoadError(f"cannot read {entry.path}: {error.strerror}"), now)
                continue
            except PenstockError as error:
                self._keep(entry.path, entry.name, error, now)
                continue
            for found in found_here:
                options = replace(entry, path=found.path) if entry.name else options_for(found, entry)
                if options.name in now.wished:
                    other = now.wished[options.name].options.path
                    raise InvalidInput(f"two models are called '{options.name}': {other} and {options.path}")
                versions = self._versions(options.name, found, Path(entry.path).expanduser(), now)
                if versions:
                    needed = needs(versions[max(versions)].path, options.name) if found.adapter == GRAPH else ()
                    if found.adapter == LANGUAGE and options.options.get(FALLBACK):
                        needed = (str(options.options[FALLBACK]),)
                    now.wished[options.name] = WishedModel(options, found.adapter, versions, needs=needed)
                    now.entries[options.name] = entry.path
        self._last = now
        return now.wished

    def _look(self, entry: ModelOptions, now: _Poll) -> tuple[Found, ...]:
        try:
            if entry.adapter not in self._plugs:
                self._plugs[entry.adapter] = adapters(entry.adapter)
            found = look(entry.path, self._plugs[entry.adapter], lambda path, error: self._keep(path, "", error, now))
        except NotFound:
            # Taken away while we serve: then the model goes. A whole disk that is gone takes nothing away.
            if self._last is not None and Path(entry.path).expanduser().parent.is_dir():
                return ()
            raise
        if entry.name and len(found) > 1:
            names = ", ".join(each.name for each in found)
            raise InvalidInput(f"{entry.path} holds several models ({names}), which cannot all be '{entry.name}'")
        return found

    def _keep(self, path: str, name: str, error: PenstockError, now: _Poll) -> None:
        """Offers what was offered last of the models at `path`, and the reason why it is not what is there now."""
        self._tell(error, now)
        last = self._last or now
        kept = [n for n, model in last.wished.items() if path in (model.options.path, last.entries.get(n))]
        for each in kept:
            now.wished[each] = replace(last.wished[each], trouble=error.message)
            now.entries[each] = last.entries.get(each, path)
            for number in last.wished[each].versions:
                now.seen[each, number] = now.offered[each, number] = last.offered[each, number]
        if not kept:
            name = name or safe_name(Path(path).stem)
            now.wished.setdefault(name, WishedModel(ModelOptions(name=name, path=path), "", {}, error.message))

    def _versions(self, name: str, found: Found, root: Path, now: _Poll) -> dict[int, WishedVersion]:
        versions: dict[int, WishedVersion] = {}
        last = self._last
        for number, path in found.versions.items():
            key = (name, number)
            before = last.offered.get(key) if last is not None else None
            chosen: WishedVersion | None
            try:
                _contain(path, root)
                chosen = version = WishedVersion(number, path, fingerprint(_whole(path, found)))
            except (OSError, LoadError) as error:
                self._tell(error if isinstance(error, LoadError) else LoadError(f"cannot read {path}: {error}"), now)
                chosen = before
            else:
                now.seen[key] = version
                if self._settle and last is not None and version not in (last.seen.get(key), before):
                    chosen = before
            if chosen is not None:
                versions[number] = now.offered[key] = chosen
        return versions

    def _tell(self, error: PenstockError, now: _Poll) -> None:
        """Stops a start; later, what serves goes on serving and the log tells once for as long as it lasts."""
        if self._last is None:
            raise error
        if str(error) not in self._last.told | now.told:
            log.warning("version_refused", extra={"error": str(error)})
        now.told.add(str(error))


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
