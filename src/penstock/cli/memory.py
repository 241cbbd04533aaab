"""`penstock memory`: what a language model would take, before it is loaded, and what fits this machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.core.errors import InvalidInput, NotFound
from penstock.core.nearest import nearest
from penstock.language import memory as memory_of
from penstock.language.files import ModelFiles, look

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "kb": 10**3, "mb": 10**6,
          "gb": 10**9, "tb": 10**12}  # fmt: skip
_MOST_TOKENS, _MOST_SEQUENCES = 1 << 24, 1 << 16


@app.command(cls=Command)
def memory(
    model: Annotated[Path, typer.Argument(help="A .gguf file, or a Hugging Face or OpenVINO folder.")],
    context: Annotated[int | None, typer.Option(help="Tokens of one sequence; unset: the model's own.")] = None,
    concurrency: Annotated[int, typer.Option(help="Sequences at once, each with a whole context.")] = 1,
    dtype: Annotated[
        str, typer.Option(help=f"Of the weights: {', '.join(memory_of.DTYPES)}; unset: as the engine takes them.")
    ] = "",
    kv_dtype: Annotated[
        str, typer.Option(help=f"Of the KV cache: {', '.join(memory_of.CACHE_KINDS)}; unset: the engine's own.")
    ] = "",
    engine: Annotated[
        str, typer.Option(help=f"{', '.join(memory_of.ENGINES)}; unset: the one that would serve it on a CPU.")
    ] = "",
    device: Annotated[
        list[str] | None, typer.Option(help="The size of a device that is not here, as 80GiB; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tells the memory of a language model before it is loaded: weights, KV cache, activations and engine, and what
    fits each device. Only headers are read."""
    if not model.exists():
        raise NotFound(f"there is nothing at {model}")
    for name, value, most in (("context", context, _MOST_TOKENS), ("concurrency", concurrency, _MOST_SEQUENCES)):
        if value is not None and not 1 <= value <= most:
            raise InvalidInput(f"--{name} {value}: write a whole number from 1 to {most}")
    files = look(model)
    terms = terms_of(engine, files)
    shape = memory_of.read(files)
    wish = memory_of.Wish(context or shape.context_tokens or 4096, concurrency, dtype, kv_dtype)
    made = memory_of.estimate(shape, terms, wish)
    devices = [_row(name, size, free, shape, terms, wish) for name, size, free in _devices(device or [])]
    parts = {
        "weights": made.weights, "weights in the engine's form": made.weights_again, "KV cache": made.cache,
        "activations": made.activations, "engine": made.engine, "total": made.total,
    }  # fmt: skip
    if as_json:
        from penstock.cli.output import print_json

        print_json({
            "model": str(model), "architecture": shape.architecture, "parameters": shape.parameters,
            "precision": dtype or shape.precision, "engine": terms.name, "context": wish.context_tokens,
            "concurrency": concurrency, "kv_dtype": made.cache_kind, "kv_bytes_per_token": made.token,
            "bytes": parts, "resident_at_load_bytes": made.at_load, "reclaimable_bytes": made.mapped,
            "devices": devices,
        })  # fmt: skip
        return
    _print(shape, terms, wish, made, parts, devices)


def terms_of(engine: str, files: ModelFiles) -> memory_of.EngineTerms:
    """The terms of an engine by its name; for "" those of the one that serves such files. Raises: InvalidInput."""
    if not engine:
        from penstock.core.errors import PenstockError
        from penstock.runtime.language.choice import choose

        try:
            engine = choose(files, "cpu", "").name
        except PenstockError:  # none is installed here; what would be is told all the same
            engine = ""
        if engine not in memory_of.ENGINES:
            engine = "llamacpp" if files.kind == "gguf" else "openvino"
    if engine not in memory_of.ENGINES:
        raise InvalidInput(
            f"no engine {engine!r}{nearest(engine, memory_of.ENGINES)}; there are {', '.join(memory_of.ENGINES)}"
        )
    return memory_of.ENGINES[engine]


def bytes_of(text: str) -> int:
    """The bytes that "80GiB" or "24 GB" says. Raises: InvalidInput."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS or not float(match[1]):
        raise InvalidInput(f"--device {text!r}: write a size above 0, as 80GiB or 24GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _devices(given: list[str]) -> list[tuple[str, int | None, int]]:
    """Name, whole size and free bytes of each device: those given, else those of this machine."""
    if given:
        return [(text, bytes_of(text), bytes_of(text)) for text in given]
    from penstock.runtime.workers.free_memory import free_bytes, total_bytes

    free = free_bytes()
    here: list[tuple[str, int | None, int]] = [] if free is None else [("memory", total_bytes(), free)]
    return here + _cards()


def _cards() -> list[tuple[str, int | None, int]]:
    """NVIDIA's cards, by their own tool; none where it is not installed."""
    command = ["nvidia-smi", "--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found: list[tuple[str, int | None, int]] = []
    for line in told.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[2].isdigit() and fields[3].isdigit():
            found.append((f"cuda:{fields[0]} {fields[1]}", int(fields[2]) << 20, int(fields[3]) << 20))
    return found


def _row(
    name: str, size: int | None, free: int, shape: memory_of.Shape, terms: memory_of.EngineTerms, wish: memory_of.Wish
) -> dict[str, object]:
    total = memory_of.estimate(shape, terms, wish).total
    return {
        "device": name, "size_bytes": size, "free_bytes": free, "fits": total <= memory_of.USABLE * free,
        "largest_concurrency": memory_of.largest_concurrency(shape, terms, wish, free),
        "largest_context": memory_of.largest_context(shape, terms, wish, free),
    }  # fmt: skip


def _print(
    shape: memory_of.Shape,
    terms: memory_of.EngineTerms,
    wish: memory_of.Wish,
    made: memory_of.Estimate,
    parts: dict[str, int],
    devices: list[dict[str, object]],
) -> None:
    from penstock.cli.output import print_table

    size = memory_of.size
    print(
        f"{shape.architecture}, {shape.parameters / 1e6:,.0f} M weights in {wish.dtype or shape.precision}, with "
        f"{terms.name}: {wish.concurrency} x {wish.context_tokens} tokens, {made.token:,} bytes of {made.cache_kind} "
        f"cache per token"
    )
    print_table([{"part": part, "size": size(count)} for part, count in parts.items()], right=["size"])
    print(
        f"resident after the load: {size(made.at_load)}; the rest as tokens fill it. "
        f"{size(made.mapped)} of it are pages of the file, which the kernel can take back"
    )
    rows = [
        {
            "device": row["device"], "free": size(int(str(row["free_bytes"]))), "fits": "yes" if row["fits"] else "no",
            f"most sequences of {wish.context_tokens}": row["largest_concurrency"],
            f"longest context of {wish.concurrency}": row["largest_context"],
        }
        for row in devices
    ]  # fmt: skip
    print_table(rows, right=list(rows[0])[1:] if rows else [])
