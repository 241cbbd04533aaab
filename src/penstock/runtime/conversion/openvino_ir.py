"""The conversion itself, in a process of its own: what it takes of memory is given back, and a native abort is told.

Its `main` is told SOURCE TARGET DTYPE on the command line; it ends when its standard input does,
so that it never outlives who started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.core.errors import LoadError, PenstockError

MODEL = "openvino_model.xml"
_GROUP_SIZES = (64, 32)  # weights that share a scale; what divides the width is taken
_KEPT_LINES = 30
_OPTIMUM_FORMATS = {"int8": "int8", "int4": "int4", "f16": "fp16"}


def run(source: Path, target: Path, dtype: str, progress: Callable[[str], None]) -> None:
    """Converts in a child process. Raises: LoadError with the child's last words."""
    _run(
        [sys.executable, "-c", f"from {__name__} import main; main()", str(source), str(target), dtype],
        source,
        progress,
    )


def run_optimum(program: str, source: Path, target: Path, dtype: str, progress: Callable[[str], None]) -> None:
    """The same by optimum-intel. Raises: LoadError with its last words."""
    more = ["--group-size", "64"] if dtype == "int4" else []
    command = [program, "export", "openvino", "-m", str(source), "--task", "text-generation-with-past"]
    command += ["--weight-format", _OPTIMUM_FORMATS[dtype], *more, str(target)]
    _run(command, source, progress)


def _run(command: list[str], source: Path, progress: Callable[[str], None]) -> None:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env={**os.environ, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "NNCF_CI": "1"}, start_new_session=True,
    ) as child:  # fmt: skip
        # Whatever it forked would hold its end of the pipe open: reading would never end.
        threading.Thread(target=_end_group, args=(child,), daemon=True).start()
        assert child.stdout is not None
        said: list[str] = []
        try:
            for line in child.stdout:
                line = line.rstrip()
                if line.startswith("> "):
                    progress(line[2:])
                elif line:
                    said = [*said, line][-_KEPT_LINES:]
            code = child.wait()
        finally:
            child.kill()
    if code:
        told = next((line[2:] for line in reversed(said) if line.startswith("! ")), " ".join(said[-3:]))
        raise LoadError(f"the conversion of {source.name} failed (exit {code}): {told}")


def convert(source: Path, target: Path, dtype: str, progress: Callable[[str], None]) -> None:
    """Writes `openvino_model.xml` and `.bin` into `target`."""
    from penstock.language import gguf
    from penstock.runtime.conversion import half_gguf, rotation

    half = target / "half.gguf"
    if source.is_dir():
        config = json.loads((source / "config.json").read_text("utf-8"))
        half_gguf.from_folder(source, config, half, progress)
        told = rotation.told_of(config)
        divisors = None
    else:
        half_gguf.from_gguf(source, half, progress)
        header = gguf.read_header(source)
        told, divisors = half_gguf.rotation_of(header), half_gguf.divisors_of(source)
    progress("building the graph")
    _read_by_genai(half)
    base, size = half_gguf.head_of(gguf.read_header(half))
    half.unlink()
    import openvino

    model = openvino.Core().read_model(target / MODEL)
    wanted = rotation.scaled(told, size)
    rotation.put(model, base, wanted if divisors is None else wanted / divisors)
    if dtype != "f16":
        progress(f"compressing the weights to {dtype}")
        model = _compressed(model, dtype)
    # Matrices are in f16 or smaller by now: what is left in f32 must not be rounded once more.
    openvino.save_model(model, target / "exact.xml", compress_to_fp16=False)
    for suffix in (".bin", ".xml"):
        (target / "exact").with_suffix(suffix).replace((target / MODEL).with_suffix(suffix))


def _read_by_genai(half: Path) -> None:
    """OpenVINO GenAI's reader builds the graph, and saves it beside the file."""
    import openvino_genai

    from penstock.runtime.conversion.minimal_tokenizer import minimal_tokenizer

    schedule = openvino_genai.SchedulerConfig()
    schedule.num_kv_blocks = 1
    openvino_genai.ContinuousBatchingPipeline(
        half, minimal_tokenizer([b"a", b"b", b"c"], 2), schedule, "CPU", enable_save_ov_model=True
    )


def _compressed(model: Any, dtype: str) -> Any:
    import nncf

    if dtype == "int8":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=_group(model), ratio=1.0)


def _group(model: Any) -> int:
    """64 where it divides the width of every matrix but the embedding's, which stays int8; else what does."""
    widths = {
        node.get_input_shape(1)[-1]
        for node in model.get_ops()
        if node.get_type_name() == "MatMul" and node.input_value(1).get_partial_shape().is_static
    }
    return next((size for size in _GROUP_SIZES if all(width % size == 0 for width in widths)), -1)


def _end_group(child: subprocess.Popen[str]) -> None:
    child.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def forbid_telemetry() -> None:
    """OpenVINO and nncf report their use over the network, from a forked process, when this package can be imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: import raises ImportError


def main() -> None:
    """The child: progress as lines that begin with `> `, the reason of a failure with `! `."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    forbid_telemetry()
    source, target, dtype = sys.argv[1:]
    try:
        convert(Path(source), Path(target), dtype, lambda line: print(f"> {line}", flush=True))
    except (PenstockError, RuntimeError, ValueError, KeyError, OSError, MemoryError) as error:
        reason = error.message if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
        print("! " + " ".join(reason.split()), flush=True)
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
