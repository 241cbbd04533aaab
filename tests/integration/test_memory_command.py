"""`penstock memory`, and how near it comes to what processes really hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.core.errors import LoadError

MIB = 1 << 20
CHILD = Path(__file__).parents[1] / "engine_memory.py"


def told(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli", "memory", *arguments], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_parts_add_up_and_devices_are_told(smollm2: Path) -> None:
    told_of = json.loads(
        told(str(smollm2), "--context", "2048", "--concurrency", "4", "--engine", "llamacpp", "--json",
             "--device", "1GiB", "--device", "200MB", "--kv-dtype", "q8_0")
    )  # fmt: skip
    parts = told_of["bytes"]
    assert parts["KV cache"] == 4 * 2048 * 12240 and told_of["kv_bytes_per_token"] == 12240
    assert parts["weights"] == 96576768
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")
    large, small = told_of["devices"]
    assert large["fits"] and large["largest_concurrency"] >= 4 and large["largest_context"] == 8192
    assert not small["fits"] and (small["largest_concurrency"], small["largest_context"]) == (0, 0)


def test_this_machine_is_told_for_people(smollm2: Path) -> None:
    said = told(str(smollm2), "--engine", "llamacpp")
    assert "KV cache\t180 MiB" in said and "\nmemory\t" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "int44"], "did you mean 'int4'"),
        (["--kv-dtype", "u8", "--engine", "llamacpp"], "llamacpp has no KV cache of 'u8'"),
        (["--engine", "llamacp"], "did you mean 'llamacpp'"),
        (["--device", "eighty"], "write a size above 0, as 80GiB"),
        (["--context", "0"], "--context 0"),
    ],
)
def test_what_is_wrong_is_named(smollm2: Path, arguments: list[str], words: str) -> None:
    assert words in told(str(smollm2), *arguments, code=2)


def test_no_model_there(tmp_path: Path) -> None:
    assert "there is nothing at" in told(str(tmp_path / "none.gguf"), code=2)


def measured(
    model: Path, engine: str, context: int, sequences: int, options: dict[str, object], cache: Path
) -> dict[str, int]:
    told = subprocess.run(
        [sys.executable, str(CHILD), str(model), engine, str(context), str(sequences), json.dumps(options), str(cache)],
        capture_output=True, text=True, timeout=580, env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    return dict(json.loads(told.stdout.strip().splitlines()[-1]))


def predicted(model: Path, engine: str, context: int, sequences: int, options: dict[str, object]) -> tuple[int, int]:
    """At load and full."""
    from penstock.language import memory
    from penstock.language.files import look

    size = options.get("kv_cache_bytes")
    assert size is None or isinstance(size, int)
    wish = memory.Wish(context, sequences, str(options.get("dtype", "")), str(options.get("kv_type", "")), size)
    made = memory.estimate(memory.read(look(model)), memory.ENGINES[engine], wish)
    return made.at_load, made.total


@pytest.mark.parametrize(
    ("context", "sequences", "options"),
    [
        (512, 2, {"kv_cache_bytes": 1024 * 23040}),
        pytest.param(2048, 1, {"kv_type": "q8_0"}, marks=pytest.mark.engines),
        pytest.param(8192, 1, {"kv_cache_bytes": 8192 * 23040}, marks=[pytest.mark.engines, pytest.mark.timeout(300)]),
        pytest.param(1024, 8, {"kv_cache_bytes": 8192 * 23040}, marks=[pytest.mark.engines, pytest.mark.timeout(300)]),
        pytest.param(1024, 16, {"kv_cache_bytes": 16384 * 23040}, marks=[pytest.mark.engines, pytest.mark.timeout(600)]),
    ],
)  # fmt: skip
def test_llamacpp_is_predicted_within_a_tenth(
    smollm2: Path, tmp_path: Path, context: int, sequences: int, options: dict[str, object]
) -> None:
    at_load, full = predicted(smollm2, "llamacpp", context, sequences, options)
    found = measured(smollm2, "llamacpp", context, sequences, options, tmp_path)
    print(
        f"at load {at_load / MIB:.0f} said, {found['at_load'] / MIB:.0f} found; full {full / MIB:.0f}, {found['full'] / MIB:.0f}"
    )
    assert at_load == pytest.approx(found["at_load"], rel=0.1)
    assert full == pytest.approx(found["full"], rel=0.1)


@pytest.mark.engines
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", ["int8", "int4", "f16"])
@pytest.mark.parametrize(("context", "sequences"), [(1024, 1), (2048, 4)])
def test_openvino_is_predicted_within_a_tenth(
    smollm2: Path, tmp_path: Path, dtype: str, context: int, sequences: int
) -> None:
    pytest.importorskip("penstock.runtime.engines.openvino")
    options: dict[str, object] = {"dtype": dtype}
    _, full = predicted(smollm2, "openvino", context, sequences, options)
    found = measured(smollm2, "openvino", context, sequences, options, tmp_path)
    print(f"full {full / MIB:.0f} said, {found['full'] / MIB:.0f} found")
    assert full == pytest.approx(found["full"], rel=0.1)


def test_a_model_that_cannot_fit_is_refused_before_its_engine_loads(smollm2: Path) -> None:
    from penstock.language.files import look
    from penstock.runtime.engines import EngineContext
    from penstock.runtime.language.fit import check_fits

    with pytest.raises(LoadError, match=r"big does not fit: with llamacpp, .*weights 92 MiB.* memory_check = false"):
        check_fits(look(smollm2), EngineContext("big", context_tokens=8192), "llamacpp", 150 * MIB)
    check_fits(look(smollm2), EngineContext("big", context_tokens=8192), "llamacpp", 1024 * MIB)
