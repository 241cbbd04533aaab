"""`penstock version`: this version, Python's, and which frameworks are installed."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Annotated

import typer

import penstock
from penstock.cli.command import Command

app = typer.Typer(add_completion=False, rich_markup_mode=None)

FRAMEWORKS = (
    "onnxruntime", "scikit-learn", "skops", "xgboost", "lightgbm", "catboost", "torch", "tensorflow", "transformers",
    "mlflow",
)  # fmt: skip


@app.command(cls=Command)
def version(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Shows the versions of Penstock, Python and the frameworks here."""
    found = {"penstock": penstock.__version__, "python": platform.python_version()}
    for name in FRAMEWORKS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if as_json:
        from penstock.cli.output import print_json

        print_json(found)
        return
    for name, number in found.items():
        print(f"{name:<14}{number}")
