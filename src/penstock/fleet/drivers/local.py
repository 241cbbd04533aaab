"""Replicas as processes of this machine: `penstock serve`, each in a session of its own, that outlive the controller.

FOLDER/replicas/ID/       penstock.toml, replica.json, log; the replica's working directory
FOLDER/environments/…     Python environments
FOLDER/archives/…         unpacked archives
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from penstock import config
from penstock.core.errors import InvalidInput, NotFound
from penstock.fleet.drivers import Launch, Settings
from penstock.fleet.local import command, disused, groups, limits, machine, output, process, record, variables
from penstock.fleet.local.contents import Contents
from penstock.fleet.local.environments import Environments
from penstock.fleet.local.life import Life
from penstock.fleet.local.pages import Pages
from penstock.fleet.local.record import Record
from penstock.fleet.placement import Place
from penstock.fleet.spec import Run
from penstock.fleet.state import Replica, ReplicaState

T = TypeVar("T")

log = logging.getLogger("penstock.driver")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_TEND_S = 0.5
_KEPT_LOGS = 20  # of replicas that are gone
_THREADS = 8  # starts and ends at the same time; each is short


class Local:
    """The driver. `environ` is the controller's environment, for secrets and what replicas inherit."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        self.changed = asyncio.Event()
        self._settings = settings
        self._environ = config.environment() if environ is None else environ
        self._folder = settings.folder.absolute()
        self._fleet = re.sub(r"[^A-Za-z0-9_-]", "-", settings.fleet)
        self._lives: dict[str, Life] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="penstock-driver")
        self._environments = Environments(self._folder / "environments", f"{self._fleet}:build")
        self._contents = Contents(self._folder / "archives")
        self._pages = Pages()
        self._tending: asyncio.Task[None] | None = None
        self._turn = itertools.count()
        self._told = False

    async def adopt(self) -> Sequence[Replica]:
        await self._in_thread(functools.partial(self._replicas.mkdir, mode=0o700, parents=True, exist_ok=True))
        for folder, kept in await self._in_thread(self._records):
            pidfd = None
            if kept.ended_at is None and kept.pid is not None:
                known = process.Identity(kept.pid, kept.started_ticks, kept.boot)
                pidfd = await self._in_thread(process.open_again, known, kept.marker)
            if kept.ended_at is None and (kept.pid is None or (pidfd is None and kept.stop_by is not None)):
                await self._in_thread(self._end_unknown, kept)  # half started, or stopped while nobody looked
                continue
            if kept.ended_at is not None and (kept.forgotten or kept.stop_by is not None):
                continue  # only its log is there still
            life = self._lives[kept.id] = Life(folder, kept, self._threads, self.changed.set)
            if pidfd is not None:
                life.take_over(pidfd)
            else:
                life.was_found_dead()
        await self._in_thread(self._end_orphans)
        in_use = {name for life in self._lives.values() for name in life.record.uses}
        for place in ("environments", "archives"):
            await self._in_thread(disused.prune, self._folder / place, in_use)
        self._tend_from_now_on()
        self.changed.set()
        return self.replicas()

    async def places(self) -> Sequence[Place]:
        return (await self._in_thread(machine.place, self._environ),)

    async def prepare(self, run: Run, content: Mapping[str, str] | None = None) -> None:
        known = content or {}
        await self._contents.folder_of(run.model or run.graph, known.get("archive", ""))
        if run.requirements:
            await self._environments.prepare(Path(run.requirements), known.get("requirements", ""))

    async def start(self, launch: Launch) -> None:
        if launch.id in self._lives:
            return
        if not _ID.fullmatch(launch.id):
            raise InvalidInput(f"replica id {launch.id[:80]!r}: letters, digits, _ - and . only")
        self._tend_from_now_on()
        kept = Record(
            id=launch.id, deployment=launch.name, revision=launch.revision, place=launch.place, started_at=time.time(),
            marker=f"{self._fleet}:{launch.id}:{secrets.token_hex(8)}", cpu=launch.run.cpu,
            memory_bytes=launch.run.memory_bytes, pinned=bool(launch.content),
        )  # fmt: skip
        life = self._lives[launch.id] = Life(self._replicas / launch.id, kept, self._threads, self.changed.set)
        self._pages.release(launch.name)
        life.begin(self._launch(launch, kept))
        self.changed.set()

    async def stop(self, id: str, grace_s: float) -> None:
        life = self._lives.get(id)
        if life is None or life.state is ReplicaState.FAILED:
            return
        files = await self._in_thread(life.files)
        await life.stop(grace_s)
        if not any(one.alive and one.record.stop_by is None for one in self._of(life.record.deployment)):
            self._pages.keep(life.record.deployment, files)

    def forget(self, id: str) -> None:
        life = self._lives.get(id)
        if life is not None and life.state is ReplicaState.FAILED:
            life.record.forgotten = True
            self.changed.set()

    def release(self, deployment: str) -> None:
        """A deployment was deleted: its files need not be kept in memory."""
        self._pages.release(deployment)

    def replicas(self) -> Sequence[Replica]:
        return [life.replica for life in self._lives.values() if not _gone(life)]

    async def gone(self, deployment: str) -> Sequence[Replica]:
        known = {replica.id for replica in self.replicas()}
        kept = [one for _, one in await self._in_thread(self._records) if one.deployment == deployment]
        kept.sort(key=lambda one: one.started_at)
        return [record.replica(one, ReplicaState.FAILED) for one in kept if one.id not in known]

    async def logs(self, id: str, lines: int, follow: bool) -> AsyncIterator[str]:
        folder = self._replicas / id
        if not _ID.fullmatch(id) or not await self._in_thread(folder.is_dir):
            raise NotFound(f"there is no replica {id[:80]!r}, and no log of one")
        if not follow:
            for line in await self._in_thread(output.last_lines, folder, lines):
                yield line
            return
        life = self._lives.get(id)
        async for line in output.follow(folder, lines, lambda: life is not None and not life.ended.is_set()):
            yield line

    async def close(self) -> None:
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        await asyncio.gather(*(life.close() for life in self._lives.values()))
        await self._pages.close()
        # What is being started is started and written down, for the next controller.
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    @property
    def _replicas(self) -> Path:
        return self._folder / "replicas"

    async def _launch(self, launch: Launch, kept: Record) -> process.Identity:
        """Starts the process. Raises: InvalidInput, LoadError, OSError: why it cannot be."""
        run = launch.run
        known = launch.content
        path, archive = await self._contents.folder_of(run.model or run.graph, known.get("archive", ""))
        python, requirements = Path(sys.executable), ""
        if run.requirements:
            python, requirements = await self._environments.prepare(
                Path(run.requirements), known.get("requirements", "")
            )
        files = {"archive": archive, "requirements": requirements}
        kept.content = {key: digest for key, digest in files.items() if digest}
        kept.files, kept.uses = [str(path)], [path.parent.name, python.parent.parent.name]
        return await self._in_thread(self._launch_now, launch, kept, path, python)

    def _launch_now(self, launch: Launch, kept: Record, path: Path, python: Path) -> process.Identity:
        run = launch.run
        if kept.stop_by is not None:
            raise InvalidInput("it was stopped before it began")
        environment = variables.variables(run, self._environ, kept.marker, bool(run.requirements), self._endpoints())
        if run.requirements:
            environment["VIRTUAL_ENV"] = str(python.parent.parent)
            environment["PATH"] = f"{python.parent}:{environment.get('PATH', os.defpath)}"
        folder = self._replicas / launch.id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        cpu = None if run.cpu is None else limits.starting_cpu(run.cpu, groups.cpu_limit())
        made = groups.make(f"{self._group_prefix}{launch.id}", groups.Limits(cpu, run.memory_bytes))
        kept.limited = made.memory
        kept.groups = [str(one) for one in made.folders]
        record.write(folder, kept)
        if (run.cpu is not None and not made.cpu) or (run.memory_bytes is not None and not made.memory):
            self._tell_of_limits()
        text = command.configuration(
            launch.name, run, path, launch.gpu_shares, launch.content, limits.model_defaults(run, made)
        )
        file = folder / "penstock.toml"
        file.touch(mode=0o600)
        file.write_text(text, encoding="utf-8")
        descriptor = output.open_to_write(folder)
        try:
            pid = process.start(command.command(python, file), environment, folder, descriptor, made.folders)
        finally:
            os.close(descriptor)
        if run.cpu is not None and not made.cpu:
            limits.bind(pid, run.cpu, next(self._turn))
        started = process.identity(pid) or process.Identity(pid, 0, "")  # it may have ended already
        kept.pid, kept.started_ticks, kept.boot = started.pid, started.ticks, started.boot
        record.write(folder, kept)
        return started

    def _of(self, deployment: str) -> list[Life]:
        return [life for life in self._lives.values() if life.record.deployment == deployment]

    def _endpoints(self) -> dict[str, str]:
        known = {
            "PENSTOCK_ENDPOINTS_URL": self._settings.endpoints_url,
            "PENSTOCK_ENDPOINTS_KEY": self._settings.endpoints_key,
        }  # fmt: skip
        return {name: value for name, value in known.items() if value}

    @property
    def _group_prefix(self) -> str:
        return f"penstock.{self._fleet}."

    def _tell_of_limits(self) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "limits_without_control_groups",
                extra={"reason": "no control group may be made here: memory is looked at, cores are dealt by affinity"},
            )

    def _records(self) -> list[tuple[Path, Record]]:
        found = [(folder, record.read(folder)) for folder in sorted(self._replicas.iterdir()) if folder.is_dir()]
        return [(folder, kept) for folder, kept in found if kept is not None and kept.id == folder.name]

    def _end_unknown(self, kept: Record) -> None:
        folders = [Path(one) for one in kept.groups if Path(one).name.startswith(self._group_prefix)]
        groups.kill(folders)
        process.kill_all(kept.marker)
        groups.remove(folders)
        kept.ended_at, kept.forgotten = time.time(), True
        with contextlib.suppress(OSError):
            record.write(self._replicas / kept.id, kept)

    def _end_orphans(self) -> None:
        """Ends what carries this fleet's marker and belongs to no replica."""
        known = {life.record.marker for life in self._lives.values()}
        for marker in {marker for _, marker in process.carriers(f"{self._fleet}:")} - known:
            log.warning("orphan_ended", extra={"replica": marker.split(":")[1]})
            process.kill_all(marker)
        ours = {one for life in self._lives.values() for one in life.record.groups}
        left = [folder for folder in groups.leftovers(self._group_prefix) if str(folder) not in ours]
        groups.kill(left)
        groups.remove(left)

    def _tend_from_now_on(self) -> None:
        if self._tending is None:
            self._tending = asyncio.get_running_loop().create_task(self._tend())

    async def _tend(self) -> None:
        """Keeps logs small, limits where nobody else does, and folders few."""
        while True:
            await asyncio.sleep(_TEND_S)
            try:
                for life in list(self._lives.values()):
                    over = await self._in_thread(life.tend)
                    if over:
                        await life.fail(over)
                    if _gone(life) and life.ended.is_set():
                        del self._lives[life.record.id]
                        await self._in_thread(life.keep_log_only)
                await self._in_thread(self._prune)
            except Exception:
                log.exception("driver_could_not_tend")

    def _prune(self) -> None:
        """Removes folders of replicas that are gone, but for the newest."""
        entries = [folder for folder in self._replicas.iterdir() if folder.name not in self._lives]
        if len(entries) > _KEPT_LOGS:
            for folder in sorted(entries, key=lambda one: one.stat().st_mtime)[:-_KEPT_LOGS]:
                shutil.rmtree(folder, ignore_errors=True)

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(call, *arguments))


def _gone(life: Life) -> bool:
    """Nobody need hear of it any more: it stopped as it was asked to, or failed and was forgotten."""
    if life.state is ReplicaState.FAILED:
        return life.record.forgotten
    return life.ended.is_set()


plug = Local
