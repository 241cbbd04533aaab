"""`penstock quantize`: a smaller copy of a language model, with what it costs: size, speed and perplexity."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.command import Command
from penstock.core.errors import AlreadyExists, InvalidInput, LoadError, NotFound
from penstock.core.nearest import nearest
from penstock.language import memory
from penstock.language.files import ModelFiles, look

if TYPE_CHECKING:
    from penstock.runtime.language.measured import Figures

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_GGUF = ("q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0", "f16", "bf16")
_OPENVINO = ("int8", "int4")
_SPARE_BYTES = 64 << 20


@app.command(cls=Command)
def quantize(
    model: Annotated[Path, typer.Argument(help="A .gguf file; for int8 and int4 a Hugging Face folder too.")],
    out: Annotated[Path, typer.Argument(help="What is made: a .gguf file, or a folder. It must not be there.")],
    to: Annotated[str, typer.Option(help=f"{', '.join(_GGUF)} (GGUF); {', '.join(_OPENVINO)} (OpenVINO).")],
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure speed and perplexity, before and after.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Makes a smaller copy of a language model with the engines' own quantisers, and measures what it costs: size,
    tokens per second, and perplexity on a text that comes with Penstock."""
    kinds = (*_GGUF, *_OPENVINO)
    if to not in kinds:
        raise InvalidInput(f"--to {to!r}{nearest(to, kinds)}: there are {', '.join(kinds)}")
    if not model.exists():
        raise NotFound(f"there is nothing at {model}")
    if os.path.lexists(out):
        raise AlreadyExists(f"{out} is there already: name another, or remove it")
    if not out.absolute().parent.is_dir():
        raise NotFound(f"there is no folder {out.absolute().parent}")
    found = look(model)
    _check(found, out, to)
    part = out.absolute().with_name(f".{out.name}.part-{os.getpid()}")
    try:
        before, after = _made(found, part, to, measure)
        _publish(part, out)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        shutil.rmtree(_work(part), ignore_errors=True)
    _report(model, out, before, after, as_json)


def _check(found: ModelFiles, out: Path, to: str) -> None:
    if to in _GGUF and found.kind != "gguf":
        raise InvalidInput(
            f"--to {to} takes a .gguf file; this is {found.kind}: {', '.join(_OPENVINO)} can be made of it"
        )
    if to in _GGUF and out.suffix != ".gguf":
        raise InvalidInput(f"{out}: a GGUF file must be called .gguf to be recognised")
    if to in _OPENVINO and found.kind not in ("gguf", "huggingface"):
        raise InvalidInput(f"--to {to} takes a .gguf file or a Hugging Face folder; this is {found.kind}")
    if to in _OPENVINO:
        from penstock.runtime.conversion import reason

        if problem := reason(found):
            raise LoadError(f"{found.path.name} cannot be made {to}: {problem}")


def _made(found: ModelFiles, part: Path, to: str, measured: bool) -> tuple[Figures | None, Figures | None]:
    """Writes `part`, and gives the figures of before and after."""
    shape = memory.read(found)
    made = memory.estimate(shape, memory.ENGINES["openvino"], memory.Wish(1, 1, to)).weights
    if to in _GGUF:
        from penstock.runtime.conversion import ggml_quantizer

        _check_room(part, made)
        ggml_quantizer.quantize(found.path, part, to, _progress)
        engine, suffix = "llamacpp", ".gguf"
    else:
        from penstock.runtime.conversion import convert, openvino_folder

        work = _work(part)
        _check_room(part, made + 5 * shape.parameters)  # of which the f16 form, and its graph, take two bytes a weight
        part.mkdir()
        openvino_folder.complete(found, convert(found, to, work, _progress), part)
        engine, suffix = "openvino", ""
    if not measured:
        return None, None
    if found.task != "generate":
        _progress("it does not generate: its speed and perplexity are not measured")
        return None, None
    before = _before(found, part)
    named = _work(part) / f"made{suffix}"  # engines know files by their names
    named.parent.mkdir(exist_ok=True)
    named.symlink_to(part, target_is_directory=part.is_dir())
    return before, _measured(named, engine, "after")


def _before(found: ModelFiles, part: Path) -> Figures:
    """A Hugging Face folder is measured as the OpenVINO graph of its weights in f16."""
    if found.kind == "gguf":
        return _measured(found.path, "llamacpp", "before")
    from penstock.runtime.conversion import convert, openvino_folder

    plain = _work(part) / "plain"
    plain.mkdir(parents=True)
    openvino_folder.complete(found, convert(found, "f16", _work(part), _progress), plain)
    return _measured(plain, "openvino", "before")


def _measured(model: Path, engine: str, when: str) -> Figures:
    from penstock.runtime.language.measured import measure

    _progress(f"measuring {when}, with {engine}")
    text = (resources("penstock.language.memory") / "sample.txt").read_text("utf-8")
    return measure(model, engine, text, len(os.sched_getaffinity(0)))


def _publish(part: Path, out: Path) -> None:
    """Gives the whole thing its name, at once and never over another one."""
    try:
        if part.is_dir():
            if os.path.lexists(out):
                raise FileExistsError
            part.rename(out)
        else:
            with part.open("rb") as file:
                os.fsync(file.fileno())
            out.hardlink_to(part)
    except FileExistsError:
        raise AlreadyExists(f"{out} came into being meanwhile: nothing was written over it") from None


def _work(part: Path) -> Path:
    return part.with_name(f"{part.name}-work")


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < needed + _SPARE_BYTES:
        raise LoadError(
            f"{memory.size(needed + _SPARE_BYTES)} are needed below {part.parent}, {memory.size(free)} are free"
        )


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    with suppress(FileNotFoundError):  # an OpenVINO folder's weights
        return (path / "openvino_model.bin").stat().st_size
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _report(model: Path, out: Path, before: Figures | None, after: Figures | None, as_json: bool) -> None:
    sizes = (_bytes(model), _bytes(out))
    if as_json:
        from dataclasses import asdict

        from penstock.cli.output import print_json

        print_json({
            name: {"path": str(path), "size_bytes": size, **({} if told is None else asdict(told))}
            for name, path, size, told in (("before", model, sizes[0], before), ("after", out, sizes[1], after))
        })  # fmt: skip
        return
    from penstock.cli.output import print_table

    def row(name: str, size: int, told: Figures | None) -> dict[str, object]:
        measured = {} if told is None else {
            "engine": told.engine, "tokens/s": f"{told.tokens_per_s:.1f}", "perplexity": f"{told.perplexity:.3f}",
        }  # fmt: skip
        return {"": name, "size": f"{size / (1 << 20):.1f} MiB", **measured}

    rows = [row("before", sizes[0], before), row("after", sizes[1], after)]
    if before is not None and after is not None:
        rows.append({
            "": "change", "size": f"{sizes[1] / sizes[0] - 1:+.1%}", "engine": "",
            "tokens/s": f"{after.tokens_per_s / before.tokens_per_s - 1:+.1%}",
            "perplexity": f"{after.perplexity / before.perplexity - 1:+.2%}",
        })  # fmt: skip
    print_table(rows, right=list(rows[0])[1:])
