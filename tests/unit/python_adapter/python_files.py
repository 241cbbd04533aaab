"""Files of Python code that the adapter loads."""

from __future__ import annotations

import itertools
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np

from penstock.core.servable import LoadContext, Servable
from penstock.runtime.adapters.python import plug

NUMBERS = itertools.count()
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def write(folder: Path, source: str, name: str = "") -> Path:
    path = folder / (name or f"user_model_{next(NUMBERS)}.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("import numpy as np\nimport penstock\n" + dedent(source))
    return path


def load(path: Path | str, **context: Any) -> Servable:
    return plug.load(Path(path), LoadContext("model", 3, **context))
