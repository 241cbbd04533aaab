"""Replicas in Python environments of their own, made of locked requirements files."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from local_driver import Fleet, eventually, infer, replicas

from penstock.core.errors import LoadError
from penstock.fleet.drivers import Launch
from penstock.fleet.local import environments
from penstock.fleet.spec import Run
from penstock.fleet.state import ReplicaState

__all__ = ["replicas"]

VERSIONS = '''
import importlib.metadata, numpy
class Model:
    """Answers which version of a package it runs with."""
    def load(self, artifact, context):
        import {module}
        self.version = importlib.metadata.version({package!r})
    def predict(self, inputs):
        return {{"y": numpy.array([self.version], dtype=object)}}
'''


def wheel(folder: Path, version: str) -> str:
    """Makes a package called `weights` and gives back its file's SHA-256."""
    info = f"weights-{version}.dist-info"
    files = {
        "weights.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: weights\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(text)}")
    folder.mkdir(exist_ok=True)
    path = folder / f"weights-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"}.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def locked(folder: Path, name: str, *lines: str) -> str:
    path = folder / f"{name}.txt"
    path.write_text("\n".join(["--no-index", f"--find-links {folder / 'wheels'}", *lines]) + "\n")
    return str(path)


async def answers(fleet: Fleet, id: str, package: str, module: str, requirements: str) -> str:
    """What a replica with these requirements says which version it has."""
    model = fleet.folder / f"model_{id}.py"
    model.write_text(VERSIONS.format(package=package, module=module))
    run = Run(model=f"{model}:Model", requirements=requirements)
    await fleet.driver.prepare(run)
    await fleet.driver.start(Launch(id, "deployed", 1, run))
    ready = await fleet.until(id, ReplicaState.READY)
    return str((await asyncio.to_thread(infer, ready, 1.0))[0])


async def test_equal_files_share_an_environment_and_hashes_hold(
    replicas: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    digest = wheel(replicas.folder / "wheels", "1.0")
    wheel(replicas.folder / "wheels", "2.0")
    hashed = f"weights==1.0 \\\n    --hash=sha256:{digest}"
    one = await _python(replicas, locked(replicas.folder, "one", hashed))
    two = await _python(replicas, locked(replicas.folder, "two", "weights==2.0  # the newer"))
    say = [*["-P", "-c"], "import weights; print(weights.VERSION)"]
    for python, version in ((one, "1.0"), (two, "2.0")):
        assert (await asyncio.to_thread(subprocess.check_output, [python, *say], text=True)).strip() == version
    caplog.set_level("INFO", "penstock.driver")
    caplog.clear()
    assert await _python(replicas, locked(replicas.folder, "copy", "# the same", "", hashed)) == one
    # A revision never changes: the lines that its first replica had are kept, and nothing else takes their place.
    changing = Path(locked(replicas.folder, "changing", hashed))
    _, digest = await _environments(replicas).prepare(changing)
    locked(replicas.folder, "changing", "weights==2.0")
    assert await _environments(replicas).prepare(changing, digest) == (one, digest)
    assert not caplog.records, "what is built is built once"
    with pytest.raises(LoadError, match=r"no longer the file .* deploy again"):
        await _environments(replicas).prepare(changing, "0" * 64)


async def test_replica_sees_its_own_packages_and_penstocks_and_no_others(replicas: Fleet) -> None:
    wheel(replicas.folder / "wheels", "1.0")
    python = await _python(replicas, locked(replicas.folder, "one", "weights==1.0", "penstock==0.0.1"))
    code = (
        "import importlib.util as u, penstock, numpy, weights; "
        "print(penstock.__version__, [name for name in ('pytest', 'hypothesis', 'ruff') if u.find_spec(name)])"
    )
    said = await asyncio.to_thread(subprocess.check_output, [python, "-P", "-c", code], text=True)
    import penstock

    assert said.strip() == f"{penstock.__version__} []"


async def test_users_version_wins_over_one_that_penstock_uses(replicas: Fleet) -> None:
    """A package of the environment stands before the one that penstock was run with, also where it breaks penstock;
    then the build says so, and not the first request."""
    place = replicas.folder / "wheels"
    wheel(place, "1.0")
    broken = place / "msgspec-0.0.1-py3-none-any.whl"
    source = place / "weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            text = old.read(name).decode().replace("weights", "msgspec").replace("1.0", "0.0.1")
            if name.endswith("RECORD"):
                text = "msgspec.py,,\nmsgspec-0.0.1.dist-info/METADATA,,\nmsgspec-0.0.1.dist-info/WHEEL,,\n"
            elif name.endswith("WHEEL"):
                text = old.read(name).decode()
            new.writestr(name.replace("weights", "msgspec").replace("1.0", "0.0.1"), text)
    with pytest.raises(LoadError, match=r"penstock does not start .* brings msgspec 0\.0\.1 \(penstock runs with"):
        await replicas.driver.prepare(_with(replicas, locked(replicas.folder, "bad", "msgspec==0.0.1")))


async def test_failed_build_says_why_and_leaves_nothing_half_built(replicas: Fleet) -> None:
    wheel(replicas.folder / "wheels", "1.0")
    missing = locked(replicas.folder, "missing", "weights==3.0")
    with pytest.raises(LoadError, match=r"(?s)pip ended with exit status 1.*weights==3\.0"):
        await replicas.driver.prepare(_with(replicas, missing))
    forged = locked(replicas.folder, "forged", f"weights==1.0 --hash=sha256:{'0' * 64}")
    with pytest.raises(LoadError, match=r"(?s)environment could not be built.*HASH"):
        await replicas.driver.prepare(_with(replicas, forged))
    for line in ("weights", "weights>=1.0", "weights==1.*", "-r other.txt", "-e ."):
        with pytest.raises(LoadError, match=r"does not pin one version|cannot stand in a locked file"):
            await replicas.driver.prepare(_with(replicas, locked(replicas.folder, "loose", line)))
    place = replicas.settings.folder / "environments"
    assert not [one for one in place.iterdir() if one.is_dir()]
    await replicas.driver.start(Launch("one", "deployed", 1, _with(replicas, missing)))
    failed = await replicas.until("one", ReplicaState.FAILED)
    assert "weights==3.0" in failed.reason


async def test_two_builders_build_once_and_a_half_built_one_is_built_anew(
    replicas: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "penstock.driver")
    wheel(replicas.folder / "wheels", "1.0")
    file = Path(locked(replicas.folder, "one", "weights==1.0"))
    place = replicas.folder / "environments"
    first, second = (environments.Environments(place, f"{replicas.settings.fleet}:build") for _ in range(2))
    building = asyncio.create_task(first.prepare(file))
    await eventually(lambda: list(place.glob("*/bin/python")), "it is half built")
    building.cancel()  # its processes are ended with it
    await asyncio.gather(building, return_exceptions=True)
    assert not list(place.glob("*/bin")) and not replicas.processes("build")
    digest = next(place.glob("*.lock")).stem
    (place / digest / "bin").mkdir(parents=True)
    (place / digest / "bin" / "python").write_text("half of one, left by a kill")
    caplog.clear()
    pythons = await asyncio.gather(first.prepare(file), second.prepare(file), first.prepare(file))
    assert len(set(pythons)) == 1
    assert [line.message for line in caplog.records].count("environment_building") == 1
    assert await asyncio.to_thread(subprocess.call, [pythons[0][0], "-c", "import weights"]) == 0


async def test_real_package_in_two_versions(replicas: Fleet) -> None:
    await _side_by_side(replicas, "colorama", "colorama", "0.4.4", "0.4.6")


@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_real_frameworks_in_two_versions(replicas: Fleet) -> None:
    await _side_by_side(replicas, "numpy", "numpy", "1.26.4", "2.3.5")
    await _side_by_side(replicas, "scikit-learn", "sklearn", "1.6.1", "1.7.2")


async def _side_by_side(fleet: Fleet, package: str, module: str, *versions: str) -> None:
    for version in versions:
        file = fleet.folder / f"{package}-{version}.txt"
        file.write_text(f"{package}=={version}\n")
        try:
            await fleet.driver.prepare(_with(fleet, str(file)))
        except LoadError as error:
            if "CI" not in os.environ and any(one in str(error) for one in ("No matching", "Temporary failure")):
                pytest.skip(f"no package index: {error}")
            raise
        id = f"{module}-{version.replace('.', '-')}"
        assert await answers(fleet, id, package, module, str(file)) == version
    assert all(one.state is ReplicaState.READY for one in fleet.driver.replicas())


async def _python(fleet: Fleet, requirements: str) -> Path:
    return (await _environments(fleet).prepare(Path(requirements)))[0]


def _environments(fleet: Fleet) -> environments.Environments:
    return environments.Environments(fleet.settings.folder / "environments", f"{fleet.settings.fleet}:build")


def _with(fleet: Fleet, requirements: str) -> Run:
    return fleet.run("double", requirements=requirements)
