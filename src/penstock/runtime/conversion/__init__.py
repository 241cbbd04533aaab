"""Makes an OpenVINO model of a GGUF file or a Hugging Face folder, once, into the cache of converted models.

GGUF or safetensors → a GGUF file in f16 → OpenVINO's graph in f16 → weights compressed by nncf. No torch.
Folders of other architectures are converted by `optimum-cli` (package optimum-intel) where the search path has one.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from penstock.core.errors import LoadError
from penstock.language import gguf
from penstock.language.files import ModelFiles
from penstock.runtime.conversion import cache, half_gguf, openvino_ir, safetensors

DTYPES = ("int8", "int4", "f16")
_CONVERTER = 2  # raise it when the same source becomes another model, so that no old entry is used
_PACKAGES = {"openvino": "openvino", "openvino-genai": "openvino_genai", "nncf": "nncf", "gguf": "gguf",
             "openvino-tokenizers": "openvino_tokenizers"}  # fmt: skip
_OPTIMUM = "optimum-cli"


def convert(files: ModelFiles, dtype: str, folder: Path, progress: Callable[[str], None]) -> Path:
    """The folder with `openvino_model.xml`, from the cache in `folder` or made now (about 20 s for 135 M weights).

    Args:
        files: a GGUF file or Hugging Face folder that generates; an OpenVINO folder comes back as it is.
        dtype: "int8" (also for ""), "int4" or "f16".
        progress: is told a line now and then.

    Raises:
        LoadError: it cannot be converted, with what would help.
    """
    if files.kind == "openvino":
        return files.path
    check_dtype(dtype)
    dtype = dtype or "int8"
    if problem := reason(files):
        raise LoadError(f"{files.path.name} cannot be converted: {problem}")
    foreign = bool(_unknown(files))
    sources = [files.path]
    if files.kind == "huggingface":
        sources = [*safetensors.files(files.path), files.path / "config.json"]
    made_by = _OPTIMUM if foreign else " ".join(f"{name} {version(name)}" for name in _PACKAGES)

    def make(part: Path) -> None:
        progress(f"converting {files.path.name} to OpenVINO {dtype}; this is done once")
        half = half_gguf.half_bytes(files, sources)
        cache.check_room(part, 2 * half + half // 2)
        if foreign:
            openvino_ir.run_optimum(_optimum(), files.path, part, dtype, progress)
        else:
            openvino_ir.run(files.path, part, dtype, progress)
        if not (part / openvino_ir.MODEL).exists():
            raise LoadError(f"the conversion of {files.path.name} gave no {openvino_ir.MODEL}")

    return cache.entry(folder / "openvino", sources, f"{_CONVERTER} {dtype} {made_by}", make)


def check_dtype(dtype: str) -> None:
    """Raises LoadError for a dtype that models are not converted to."""
    if dtype and dtype not in DTYPES:
        raise LoadError(f"dtype = {dtype!r}: OpenVINO models are made as {', '.join(DTYPES)}")


def reason(files: ModelFiles) -> str:
    """ "" when `convert` can make an OpenVINO model of these files with what is installed; else why not."""
    if files.task != "generate" or files.kind not in ("gguf", "huggingface", "openvino"):
        return (
            f"models that generate are converted, from GGUF or Hugging Face's form; this is {files.kind} ({files.task})"
        )
    if missing := [name for name, module in _PACKAGES.items() if importlib.util.find_spec(module) is None]:
        return f'{", ".join(missing)} must be installed: pip install "penstock[openvino]"'
    problem = _unknown(files)
    if not problem or (files.kind == "huggingface" and _optimum()):
        return ""
    more = (
        "; with `optimum-cli` (pip install optimum-intel) it could be converted" if files.kind == "huggingface" else ""
    )
    return f"{problem}{more}"


def _unknown(files: ModelFiles) -> str:
    """ "" when our own way can go, else why not."""
    if files.kind == "openvino":
        return ""
    if files.kind == "gguf":
        return half_gguf.gguf_reason(gguf.read_header(files.path))
    return half_gguf.folder_reason(files.config)


def _optimum() -> str:
    return shutil.which(_OPTIMUM) or ""
