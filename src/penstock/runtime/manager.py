"""Holds every model of this replica: what is wished, what is loaded, and who answers for a name.

Theory of operation. `apply` takes the whole wished state. For each model, `lifecycle.plan` says what to load and
unload, until nothing is left to do; loads of different models run side by side, bounded by the cores. Lookups go
through one table from (model, version text) to the version that answers; every change of state builds a new table and
swaps it in, which is the one atomic step of a version switch. A version that left the table answers what it holds and
is then freed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field

from penstock.core.door import Door, VersionStatus
from penstock.core.errors import LoadError, NotFound, NotReady, PenstockError
from penstock.graphs.validate import cycle_of
from penstock.runtime import lifecycle
from penstock.runtime.batching.ledger import Occupancy
from penstock.runtime.graphs.files import ADAPTER as GRAPH
from penstock.runtime.language.defaults import LANGUAGE
from penstock.runtime.language.fallback import check_fallback
from penstock.runtime.loading import load
from penstock.runtime.residency import Residency
from penstock.runtime.sources import WishedModel, WishedVersion
from penstock.runtime.version import LoadedVersion
from penstock.runtime.workers.shortage import is_shortage
from penstock.telemetry.metrics import Metrics

log = logging.getLogger("penstock.manager")


@dataclass(slots=True)
class _Version:
    state: str
    fingerprint: str
    reason: str = ""
    loaded: LoadedVersion | None = None
    kept_until: float | None = None  # on the loop's clock: it was replaced, and stays for going back
    again: bool = False  # a call asked for it to be loaded anew
    replacing: bool = False  # its files are being loaded anew
    retry: bool = False  # a shortage kept it from loading: the next `apply` tries the same files again


@dataclass(slots=True)
class _Model:
    wished: WishedModel
    versions: dict[int, _Version] = field(default_factory=dict)
    wanted: frozenset[int] = frozenset()
    default: int | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    was_ready: bool = False  # once it answered, it is required to


class Manager:
    """Loads, switches and unloads. `on_change` is called after every change of the table or of a version's workers."""

    def __init__(self, metrics: Metrics, cores: int, residency: Residency | None = None) -> None:
        self.door: Door | None = None  # through which graphs ask the models here
        self.started = False  # whether the first load is over; until then nothing is "not found"
        self._metrics = metrics
        self._residency = residency or Residency()
        self._cores = cores
        self._occupancy = Occupancy()
        self._loads = 0
        self.on_change: Callable[[], None] = lambda: None
        self._models: dict[str, _Model] = {}
        self._table: dict[tuple[str, str], LoadedVersion] = {}
        self._load_slots = asyncio.Semaphore(max(1, cores))
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._retiring: set[asyncio.Task[None]] = set()  # replaced versions that answer what they still hold

    # --- lookups ---

    def find(self, model: str, version: str) -> LoadedVersion:
        """The version that answers for a name now. Raises: NotFound, NotReady."""
        loaded = self._table.get((model, version))
        if loaded is None:
            raise self._why_not(model, version)
        return loaded

    def table(self) -> Mapping[tuple[str, str], LoadedVersion]:
        """(model, version text) → the version that answers for it; replaced, never changed."""
        return self._table

    def names(self) -> list[str]:
        """Models with a ready version, sorted."""
        return sorted({name for name, _ in self._table})

    def known(self) -> list[str]:
        """All models, ready or not, sorted."""
        return sorted(self._models)

    def ready_versions(self, model: str) -> tuple[int, ...]:
        """Ready versions of a model, lowest first."""
        entry = self._models.get(model)
        return tuple(sorted(_ready(entry))) if entry else ()

    def wanted(self, model: str) -> frozenset[int]:
        """The versions that are to serve, by the model's policy and labels; others may still stand in for them."""
        entry = self._models.get(model)
        return entry.wanted if entry else frozenset()

    def labels(self, model: str) -> dict[str, int]:
        """The model's labels that point to ready versions."""
        entry = self._models.get(model)
        if entry is None:
            return {}
        return {label: number for label, number in entry.wished.options.labels.items() if number in _ready(entry)}

    def all_ready(self) -> bool:
        """Whether every required model has a version that answers. A newcomer that has never answered is not required:
        it must not take those out of rotation that serve."""
        return self.started and all(
            any(loaded.answers for loaded in _ready(entry).values())
            for entry in self._models.values()
            if entry.was_ready and not entry.gone
        )

    def failures(self) -> dict[str, str]:
        """Models of which no version answers, and why."""
        return {name: _reasons(name, entry) for name, entry in self._models.items() if not _ready(entry)}

    def index(self) -> list[VersionStatus]:
        """The state of every version that this process knows; and of models that have none, why."""
        known: list[VersionStatus] = []
        for name, entry in sorted(self._models.items()):
            trouble = entry.wished.trouble
            if trouble and not entry.versions:
                known.append(VersionStatus(name, "", lifecycle.UNAVAILABLE, trouble))
            for number, version in sorted(entry.versions.items()):
                reason = version.reason or trouble or _resting(version.loaded)
                known.append(VersionStatus(name, str(number), version.state, reason))
        return known

    def loaded(self, model: str = "", version: str = "") -> list[LoadedVersion]:
        """Ready versions: of all models, of one, or the one named. Raises: NotFound, NotReady."""
        if model and version:
            return [self.find(model, version)]
        if model and model not in self._models:
            raise self._why_not(model, version)
        return [
            held.loaded
            for name, entry in sorted(self._models.items())
            if model in ("", name)
            for _, held in sorted(entry.versions.items())
            if held.loaded is not None and held.state == lifecycle.READY
        ]

    def _why_not(self, model: str, version: str) -> PenstockError:
        entry = self._models.get(model)
        if not self.started and (entry is None or not _ready(entry)):
            return NotReady("the server is starting", retry_after_s=1)
        if entry is None or entry.gone:
            known = ", ".join(self.names()[:10]) or "none"
            return NotFound(f"no model '{model}'; ready models: {known}")
        if not version:
            return NotReady(_reasons(model, entry), retry_after_s=1)
        # Compared as text: "01" is no name of version 1, and digits may be more than Python turns into a number.
        number = str(entry.wished.options.labels.get(version, version))
        if not number.isdecimal():
            labels = ", ".join(entry.wished.options.labels) or "none"
            return NotFound(f"model '{model}' has no label '{version[:40]}'; labels: {labels}")
        held = next((held for known, held in entry.versions.items() if str(known) == number), None)
        if held is None or (held.state == lifecycle.UNAVAILABLE and not held.reason):
            ready = ", ".join(str(n) for n in sorted(_ready(entry))) or "none"
            return NotFound(f"model '{model}' has no version {number[:40]}; ready versions: {ready}")
        return NotReady(
            f"model '{model}' version {number} is {held.state}{': ' + held.reason if held.reason else ''}",
            retry_after_s=1,
        )

    # --- changes ---

    def apply(self, wished: Mapping[str, WishedModel]) -> None:
        """Makes this the whole wished state. Returns at once; the work goes on in the background."""
        for name, model in wished.items():
            entry = self._models.get(name)
            if entry is None:
                entry = self._models[name] = _Model(model)
            entry.wished, entry.gone = model, False
            for version in entry.versions.values():
                version.again = version.again or version.retry
            self._step(name)
            for version in entry.versions.values():
                version.again = False
        for name, entry in list(self._models.items()):
            if name not in wished and not entry.gone:
                entry.gone = True
                self._step(name)
        self._rebuild()

    def forget_failure(self, model: str) -> None:
        """Lets versions that failed be tried again although their files are the same."""
        entry = self._models.get(model)
        if entry is not None:
            for number in [n for n, v in entry.versions.items() if v.state == lifecycle.UNAVAILABLE]:
                del entry.versions[number]

    def touch(self, model: str) -> None:
        """Makes the next `apply` load the model's versions again, replacing what serves when they are ready."""
        entry = self._models.get(model)
        if entry is not None:
            for version in entry.versions.values():
                version.again = version.kept_until is None  # going back to one that was kept takes no load

    async def settled(self, model: str = "") -> None:
        """Returns when nothing is left to load or switch, of one model or of all."""
        for name in [model] if model else list(self._models):
            entry = self._models.get(name)
            if entry is not None:
                await entry.settled.wait()

    async def close(self, grace_s: float) -> None:
        """Returns when every version is closed; requests in flight have `grace_s` to finish."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._retiring:
            await asyncio.wait(self._retiring, timeout=grace_s)
        for retiring in self._retiring:
            retiring.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        loaded = [v.loaded for entry in self._models.values() for v in entry.versions.values() if v.loaded is not None]
        self._models.clear()
        self._rebuild()
        await asyncio.gather(*(self._close(version, grace_s) for version in loaded))
        await self._residency.close()

    def _step(self, name: str) -> None:
        """Starts what `lifecycle.plan` says for one model."""
        entry = self._models.get(name)
        if entry is None or self._closing:  # a load that ends while all is closed begins nothing
            return
        available = {} if entry.gone else entry.wished.versions
        for number in [n for n, v in entry.versions.items() if n not in available and v.state == lifecycle.UNAVAILABLE]:
            del entry.versions[number]
        labelled = set(entry.wished.options.labels.values()) & set(available)
        entry.wanted = lifecycle.chosen(entry.wished.options.versions, available) | labelled
        held = [
            lifecycle.Held(number, v.state, "" if v.again else v.fingerprint, v.replacing)
            for number, v in entry.versions.items()
        ]
        kept = self._kept(name, entry, available)
        actions = lifecycle.plan({number: available[number].fingerprint for number in entry.wanted}, held, kept)
        for action in actions:
            if isinstance(action, lifecycle.Load):
                self._start_load(name, entry, available[action.number])
            else:
                self._start_unload(name, entry, action.number)
        busy = any(v.state in (lifecycle.LOADING, lifecycle.UNLOADING) for v in entry.versions.values())
        replacing = any(task.get_name() == name for task in self._tasks)
        if actions or busy or replacing:
            entry.settled.clear()
        else:
            entry.settled.set()
            if entry.gone and not any(v.loaded for v in entry.versions.values()):
                del self._models[name]
                self.on_change()  # it is unknown from now on, no more "not ready"

    def _kept(self, name: str, entry: _Model, available: Mapping[int, WishedVersion]) -> set[int]:
        """The versions that were replaced so short a time ago that going back to them is to be one step."""
        loop = asyncio.get_running_loop()
        keep_s = entry.wished.options.keep_previous_s
        kept: set[int] = set()
        for number, version in entry.versions.items():
            if number in entry.wanted or number not in available or version.state != lifecycle.READY or not keep_s:
                version.kept_until = None
                continue
            if not entry.wanted & _ready(entry).keys():
                continue  # it still stands in for one that is not ready: its time has not begun
            if version.kept_until is None:
                version.kept_until = loop.time() + keep_s
                loop.call_later(keep_s + 0.05, self._step, name)  # timers may be a moment early
            if loop.time() < version.kept_until:
                kept.add(number)
        return kept

    def _start_load(self, name: str, entry: _Model, version: WishedVersion) -> None:
        current = entry.versions.get(version.number)
        if current is not None and current.loaded is not None:
            current.reason, current.replacing, current.retry = "", True, False
            current.fingerprint = version.fingerprint  # being replaced: it serves until its successor is ready
        else:
            entry.versions[version.number] = _Version(lifecycle.LOADING, version.fingerprint)
        self._spawn(name, self._load(name, entry, version))

    async def _load(self, name: str, entry: _Model, version: WishedVersion) -> None:
        log.info("model_loading", extra={"model": name, "version": version.number, "adapter": entry.wished.adapter})
        mine = entry.versions[version.number]
        try:
            # A graph waits for its models, whose loads must not wait for it.
            async with contextlib.nullcontext() if entry.wished.adapter == GRAPH else self._load_slots:
                self._check_needs(name)
                self._loads += 1
                loaded = await load(
                    entry.wished,
                    version,
                    self._metrics,
                    self._cores,
                    self._occupancy,
                    self._loads,
                    lambda: self.on_change(),
                    whole=bool(_ready(entry)),
                    door=self.door,
                )
                await self._take_in(loaded)
        except Exception as error:
            message = str(error) if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
            log.error(
                "model_failed", extra={"model": name, "version": version.number, "error": message},
                exc_info=not isinstance(error, PenstockError) and not is_shortage(error),
            )  # fmt: skip
            # Files that failed are not tried again until they change; after a shortage they are, at the next look. Not
            # before: whoever waits for this load is to be told, and tries at once would only add to the shortage.
            retry = is_shortage(error)
            if entry.versions.get(version.number) is not mine:
                return
            if mine.loaded is None:
                self._metrics.forget(name, str(version.number))
                mine.state, mine.reason, mine.retry = lifecycle.UNAVAILABLE, message, retry
            else:
                mine.reason, mine.replacing, mine.retry = f"not replaced: {message}", False, retry
            return
        if entry.versions.get(version.number) is not mine or mine.state not in (lifecycle.LOADING, lifecycle.READY):
            await self._close(loaded, 0.0)  # it was unloaded meanwhile
            return
        previous = mine.loaded
        entry.versions[version.number] = _Version(lifecycle.READY, version.fingerprint, loaded=loaded)
        entry.was_ready = True
        self._rebuild()
        log.info(
            "model_ready",
            extra={
                "model": name, "version": version.number, "adapter": loaded.adapter, "executor": loaded.executor,
                "seconds": round(loaded.loaded_s, 3), "sha256": loaded.sha256, "path": str(loaded.path),
            },
        )  # fmt: skip
        if previous is not None:  # it answers what it holds; nobody needs to wait for that
            retiring = asyncio.get_running_loop().create_task(self._close(previous, previous.options.timeout_s))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    def _check_needs(self, name: str) -> None:
        """Raises: LoadError when graphs lead to each other in a circle, where each would wait for the other, or when a
        language model's fallback is none."""
        wished = {model: entry.wished for model, entry in self._models.items()}
        if wished[name].adapter == LANGUAGE:
            check_fallback(name, wished)
            return
        circle = cycle_of({model: list(one.needs) for model, one in wished.items()})
        if name in circle:
            raise LoadError(f"the graphs {' → '.join(circle)} ask each other in a circle")

    async def _take_in(self, loaded: LoadedVersion) -> None:
        try:
            self._residency.take_in(loaded)
        except PenstockError:
            await loaded.close(0.0)
            raise

    async def _close(self, loaded: LoadedVersion, grace_s: float) -> None:
        try:
            await loaded.close(grace_s)
        finally:
            self._residency.let_go(loaded)

    def _start_unload(self, name: str, entry: _Model, number: int) -> None:
        entry.versions[number].state = lifecycle.UNLOADING
        self._rebuild()
        self._spawn(name, self._unload(name, entry, number))

    async def _unload(self, name: str, entry: _Model, number: int) -> None:
        version = entry.versions[number]
        if version.loaded is not None:
            await self._close(version.loaded, version.loaded.options.timeout_s)
            self._metrics.forget(name, str(number))
        version.loaded, version.state, version.fingerprint = None, lifecycle.UNAVAILABLE, ""
        if number in entry.wished.versions and not entry.gone:
            version.reason = "unloaded"
        else:
            del entry.versions[number]
        log.info("model_unloaded", extra={"model": name, "version": number})

    def _rebuild(self) -> None:
        table: dict[tuple[str, str], LoadedVersion] = {}
        for name, entry in self._models.items():
            ready = _ready(entry)
            entry.default = lifecycle.default(ready, entry.wanted)
            for number, loaded in ready.items():
                table[name, str(number)] = loaded
            for label, number in entry.wished.options.labels.items():
                if number in ready:
                    table[name, label] = ready[number]
            if entry.default is not None:
                table[name, ""] = ready[entry.default]
        self._table = table
        self.on_change()

    def _spawn(self, name: str, work: Coroutine[None, None, None]) -> None:
        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                if (error := task.exception()) is not None:
                    log.error("manager_task_failed", exc_info=error, extra={"model": name})
                self._step(name)
            if self.started:  # from then on the collector looks so seldom that what loads leave would pile up
                gc.collect()

        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(done)


def _reasons(name: str, entry: _Model) -> str:
    reasons = [
        f"version {number}: {version.reason or version.state}" for number, version in sorted(entry.versions.items())
    ]
    if entry.wished.trouble:
        reasons.append(entry.wished.trouble)
    return f"model '{name}' has no ready version ({'; '.join(reasons) or 'none found'})"


def _resting(loaded: LoadedVersion | None) -> str:
    if loaded is None or not loaded.resting:
        return ""
    return f"{lifecycle.RESTING}; the last load failed: {loaded.not_woken}" if loaded.not_woken else lifecycle.RESTING


def _ready(entry: _Model) -> dict[int, LoadedVersion]:
    return {
        number: version.loaded
        for number, version in entry.versions.items()
        if version.loaded is not None and version.state == lifecycle.READY
    }
