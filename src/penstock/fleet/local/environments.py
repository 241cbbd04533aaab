"""Python environments made of locked requirements files: built once each, and shared by all that have equal files.

An environment is called by a digest of what it is made of: the file's lines, this Python, and the penstock that is put
into it. It is built where it stays, since scripts in it name their place, and is whole from the moment that the file
`.used` is there, which is touched at each use. A lock keeps two builders apart; the processes of a build hold it too,
so that one whose controller died is not built over.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from penstock import config
from penstock.core.errors import LoadError
from penstock.fleet.local import disused, lock_file, overlay
from penstock.fleet.local.variables import MARKER

log = logging.getLogger("penstock.driver")

_LOCK_LOOK_S = 0.2
_LINES = 8
_LINES_FILE = "requirements.txt"
_BUILD_TIMEOUT_S = 1800.0
_LAYOUT = "1"  # of what is built here; another number makes all environments anew
# What a replica needs at the least, in the environment as it will run there.
_TRY = (
    "import penstock.cli.serve, penstock.cli.startup, penstock.runtime.server, penstock.runtime.workers.child, "
    "penstock.runtime.listeners.grpc, penstock.runtime.listeners.grpc_services; print(penstock.__version__)"
)


class Environments:
    """All environments below one folder. `marker` marks the processes that build them."""

    def __init__(self, folder: Path, marker: str, environ: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._marker = marker
        self._environ = config.environment() if environ is None else environ
        self._building: dict[str, asyncio.Lock] = {}
        self._parts: list[overlay.Part] | None = None  # of the penstock that runs here, which does not change

    async def prepare(self, requirements: Path, expected: str = "") -> tuple[Path, str]:
        """The interpreter of the environment that the file describes, which is built if it is not there; and the
        SHA-256 of the file's lines. `expected` is what that has to be: where the file has changed since, the lines of
        an environment that was built of the old ones count.

        Raises:
            LoadError: the file does not lock versions, is another than expected, or the build failed; with its last
                lines.
        """
        locked, made_of, digest = await asyncio.to_thread(self._describe, requirements, expected)
        place = self._folder / digest
        if await asyncio.to_thread(_complete, place):
            await asyncio.to_thread(disused.note_use, place)
            return _python(place), _sha256(locked)
        async with self._building.setdefault(digest, asyncio.Lock()), self._locked(digest) as lock:
            if not await asyncio.to_thread(_complete, place):
                await self._build(place, requirements, locked, made_of, lock)
        return _python(place), _sha256(locked)

    def _describe(self, requirements: Path, expected: str) -> tuple[lock_file.Locked, list[overlay.Part], str]:
        locked = self._kept(expected) if expected else None
        if locked is None:
            locked = lock_file.read(requirements)
            if expected and _sha256(locked) != expected:
                raise LoadError(
                    f"requirements {requirements}: no longer the file that this revision was made of, and a revision "
                    "never changes: deploy again to use the new one, or put the old one back"
                )
        made_of = self._parts = self._parts or overlay.parts()
        digest = hashlib.sha256()
        facts = (_LAYOUT, sys.version, sysconfig.get_platform(), sys.executable, sys.base_prefix, locked.text)
        for fact in (*facts, *(f"{part.name} {part.version} {part.entries}" for part in made_of)):
            digest.update(fact.encode(errors="surrogateescape") + b"\0")
        return locked, made_of, digest.hexdigest()[:40]

    def _kept(self, expected: str) -> lock_file.Locked | None:
        """The lines with this digest, from an environment that was built of them."""
        for file in self._folder.glob(f"*/{_LINES_FILE}"):
            with contextlib.suppress(LoadError):
                if _sha256(locked := lock_file.read(file)) == expected:
                    return locked
        return None

    async def _build(
        self, place: Path, requirements: Path, locked: lock_file.Locked, made_of: list[overlay.Part], lock: int
    ) -> None:
        started = time.monotonic()
        fields = {"requirements": str(requirements), "environment": place.name[:12]}
        log.info("environment_building", extra=fields)
        await asyncio.to_thread(shutil.rmtree, place, True)  # a half one, of a builder that was killed
        output = place.with_suffix(".log")
        try:
            with output.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                await self._steps(place, locked, made_of, file.fileno(), lock)
            (place / disused.USED).touch()
        except _StepFailed as failed:
            await asyncio.to_thread(shutil.rmtree, place, True)
            raise LoadError(
                f"requirements {requirements}: the environment could not be built: {failed}\n{_tail(output)}"
            ) from None
        except OSError as error:
            await asyncio.to_thread(shutil.rmtree, place, True)
            raise LoadError(
                f"requirements {requirements}: the environment could not be built: {error}", shortage=True
            ) from error
        except asyncio.CancelledError:
            await asyncio.to_thread(shutil.rmtree, place, True)
            raise
        log.info("environment_ready", extra={**fields, "seconds": round(time.monotonic() - started, 1)})

    async def _steps(
        self, place: Path, locked: lock_file.Locked, made_of: list[overlay.Part], output: int, lock: int
    ) -> None:
        wished = place / _LINES_FILE
        uv = shutil.which("uv", path=self._environ.get("PATH"))
        pip = importlib.util.find_spec("pip") is not None
        if uv is not None:
            await self._run([uv, "venv", "--python", sys.executable, str(place)], output, lock)
        else:
            bare = ["--without-pip"] if pip else []
            await self._run([sys.executable, "-m", "venv", *bare, str(place)], output, lock)
        python = str(_python(place))
        wished.write_text(locked.text)
        hashes = ["--require-hashes"] if locked.hashed else []
        if locked.text.strip():
            if uv is not None:
                install = [uv, "pip", "install", "--python", python]
            elif pip:
                install = [sys.executable, "-m", "pip", "--python", python, "install"]
            else:
                install = [python, "-m", "pip", "install"]
            quiet = [] if uv is not None else ["--no-input", "--disable-pip-version-check"]
            await self._run([*install, *quiet, *hashes, "-r", str(wished)], output, lock)
        await asyncio.to_thread(overlay.lay, place / overlay.FOLDER, _site_packages(place), made_of)
        try:
            await self._run([python, "-P", "-c", _TRY], output, lock)
        except _StepFailed as failed:
            own = ", ".join(await asyncio.to_thread(_replaced, _site_packages(place), made_of))
            raise _StepFailed(
                f"penstock does not start with its packages ({failed})"
                + (f"; of what penstock itself uses, the file brings {own}" if own else "")
            ) from None

    async def _run(self, arguments: Sequence[str], output: int, lock: int) -> None:
        environment = {
            name: value for name, value in self._environ.items()
            if not name.startswith(("PENSTOCK_", "PYTHON")) and name != "VIRTUAL_ENV"
        }  # fmt: skip
        environment |= {MARKER: f"{self._marker}:{secrets.token_hex(8)}", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        process = await asyncio.create_subprocess_exec(
            *arguments, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, pass_fds=(lock,),
        )  # fmt: skip
        try:
            async with asyncio.timeout(_BUILD_TIMEOUT_S):
                status = await process.wait()
        except (asyncio.CancelledError, TimeoutError) as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            if isinstance(error, TimeoutError):
                raise _StepFailed(f"{_name(arguments)} took longer than {_BUILD_TIMEOUT_S:g} s") from None
            raise
        if status:
            raise _StepFailed(f"{_name(arguments)} ended with exit status {status}")

    @contextlib.asynccontextmanager
    async def _locked(self, digest: str) -> AsyncIterator[int]:
        """Holds the environment's lock; the processes of a build inherit its descriptor."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._folder / f"{digest}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_LOCK_LOOK_S)
            yield descriptor
        finally:
            os.close(descriptor)


class _StepFailed(Exception):
    """One step of a build did not work."""


def _complete(place: Path) -> bool:
    return (place / disused.USED).exists()


def _python(place: Path) -> Path:
    return place / "bin" / "python"


def _site_packages(place: Path) -> Path:
    return place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _sha256(locked: lock_file.Locked) -> str:
    return hashlib.sha256(locked.text.encode()).hexdigest()


def _replaced(site_packages: Path, made_of: list[overlay.Part]) -> list[str]:
    """Distributions of the environment that stand before those that penstock was run with."""
    ours = {part.name: part.version for part in made_of}
    found = []
    for entry in sorted(site_packages.glob("*.dist-info")):
        name, _, version = entry.name.removesuffix(".dist-info").partition("-")
        here = ours.get(overlay.normal(name))
        if here is not None and here != version:
            found.append(f"{overlay.normal(name)} {version} (penstock runs with {here})")
    return found


def _tail(output: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
        return "\n".join(line[:400] for line in lines[-_LINES:])
    return ""


def _name(arguments: Sequence[str]) -> str:
    return "pip" if "pip" in arguments else Path(arguments[0]).name
