"""One virtual environment for each peer, under `bench/.venvs`."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

BENCH = Path(__file__).parent.parent
VENVS = BENCH / ".venvs"
MODELS = BENCH / "results" / "models"
MODEL_PACKAGES = ("onnx", "scikit-learn")


def python_of(name: str) -> Path:
    """The interpreter of an environment, whether or not it is there yet."""
    return VENVS / name / "bin" / "python"


def install(name: str, packages: Sequence[str], console: Console) -> None:
    """Makes the environment and installs into it. Raises CalledProcessError with pip's own words on the terminal."""
    if not python_of(name).exists():
        with console.status(f"{name}: making {VENVS / name}"):
            venv.create(VENVS / name, with_pip=True, symlinks=True)
    command = [str(python_of(name)), "-m", "pip", "install", "--disable-pip-version-check", "--upgrade", *packages]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with console.status(f"{name}: pip install {' '.join(packages)}") as status:
        for line in process.stdout:
            if line.startswith(("Collecting", "Downloading", "  Downloading", "Installing", "Building")):
                status.update(f"{name}: {line.strip()[:100]}")
    if process.wait() != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    console.print(f"[green]installed[/green] {name} {version(python_of(name), packages[0])}")


def version(python: Path, distribution: str) -> str:
    """The version of a distribution as that interpreter sees it, or '' when it is not there."""
    plain = distribution.split("[")[0]
    code = f"import importlib.metadata as m, json; print(json.dumps(m.version({plain!r})))"
    if not python.exists():
        return ""
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else ""


def ensure_models(console: Console) -> None:
    """Writes the models once; they need packages that no server should bring along."""
    if (MODELS / "conv.npy").exists():
        return
    if not version(python_of("models"), "scikit-learn"):
        install("models", MODEL_PACKAGES, console)
    with console.status("making the two models"):
        script = BENCH / "workloads" / "make_models.py"
        subprocess.run([str(python_of("models")), "-W", "ignore", str(script), str(MODELS)], check=True)


def this_python() -> Path:
    """The interpreter that runs the harness; not resolved, so that its environment is kept."""
    return Path(sys.executable)
