"""P9b, P3c, F7: a version that fails in any way gets no request, says why, leaves nothing behind; the old one serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_processes import workers
from versions_under_load import add, ask, code, eventually, onnx_bytes, traffic_to

import penstock
from penstock.core.errors import NotReady

Factory = Callable[..., Any]

# What the second version's file holds after the good code, and what its reason must say.
BAD_CODE = {
    "raises": ("raise RuntimeError('no weights here')", "RuntimeError: no weights here"),
    "hangs": ("import time\nwhile True: time.sleep(1)", "load_timeout_s"),
    "hangs_in_native_code": (
        "import ctypes; ctypes.PyDLL(None).pause()", "load_timeout_s",  # with the interpreter lock held
    ),
    "exits": ("import os; os._exit(7)", "it exited with code 7"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "misses_a_file": ("open('/nowhere/weights.bin')", "No such file or directory: '/nowhere/weights.bin'"),
    "is_no_python": ("def (", "SyntaxError"),
    "has_no_model": ("del Model", "has no model"),
    "warms_wrong": ("Model.predict = lambda self, x: 1 / 0", "ZeroDivisionError"),
    "gives_a_wrong_shape": (
        "Model.predict = lambda self, x: {'version': np.zeros((len(x), 9), 'f4'), 'pid': np.zeros(len(x), 'i8')}",
        "version",
    ),
    "gives_no_output": ("Model.predict = lambda self, x: {}", "version"),
    "has_a_wrong_signature": ("Model.predict = lambda self, other: {}", "other"),
    "dies_in_warm_up": ("Model.predict = lambda self, x: os.kill(os.getpid(), 9)", "SIGKILL"),
    "hangs_in_warm_up": ("Model.predict = lambda self, x: time.sleep(3600)", "load_timeout_s"),
    "ends_the_interpreter": ("raise SystemExit(3)", "SystemExit"),
}  # fmt: skip


def broken_file(name: str) -> tuple[str, bytes]:
    whole = onnx_bytes(2)
    return {
        "half_written": ("model.onnx", whole[: len(whole) // 2]),
        "flipped": ("model.onnx", bytes([whole[0] ^ 0xFF]) + whole[1:]),
        "empty": ("model.onnx", b""),
        "of_another_kind": ("model.onnx", code(2).encode()),
    }[name]


BAD_FILES = ("half_written", "flipped", "empty", "of_another_kind")


def statuses(running: Any) -> dict[tuple[str, str], Any]:
    with penstock.Client(running.http) as client:
        return {(status.name, status.version): status for status in client.index()}


@pytest.mark.parametrize(
    "names",
    [
        ["raises", "hangs", "crashes", "gives_a_wrong_shape", "dies_in_warm_up", "half_written"],
        pytest.param([*BAD_CODE, *BAD_FILES], marks=[pytest.mark.chaos, pytest.mark.timeout(300)]),
    ],
    ids=["some", "all"],
)
def test_bad_version_gets_no_request_and_the_old_one_serves_on(
    server: Factory, tmp_path: Path, names: list[str], figure: Callable[..., None]
) -> None:
    for name in names:
        add(tmp_path / "models" / name, 1, "onnx" if name in BAD_FILES else "process")
    running = server(
        {
            name: {"path": str(tmp_path / "models" / name), "load_timeout_s": 6.0 if "hang" in name else 60.0}
            for name in names
        },
        poll_s=0.1,
    )
    before = {name: ask(running, name)[2] for name in names}
    processes = {*workers(running.pid)}
    assert {pid for pid in before.values() if pid} == processes
    with traffic_to(running, *names[:4]) as traffic:
        for name in names:
            hidden = tmp_path / "models" / name / ".v2"
            hidden.mkdir()
            if name in BAD_FILES:
                file, content = broken_file(name)
                (hidden / file).write_bytes(content)
            else:
                (hidden / "model.py").write_text(code(2, more=BAD_CODE[name][0]))
            hidden.rename(hidden.parent / "2")
        for name in names:
            eventually(
                lambda name=name: getattr(statuses(running).get((name, "2")), "state", "") == "UNAVAILABLE",
                60.0,
                f"{name} is not refused",
            )
        reasons = {name: statuses(running)[name, "2"].reason for name in names}
        for name in set(names) - set(BAD_FILES):
            assert BAD_CODE[name][1] in reasons[name], (name, reasons[name])
        assert all(reasons.values())
        for name in names:
            with pytest.raises(NotReady, match="version 2 is UNAVAILABLE"):
                ask(running, name, "2")
            assert ask(running, name) == ("1", 1, before[name])
    figure(
        "P9b", f"answers of one of {len(names)} kinds of bad versions",
        sum(count for (_, version), count in traffic.answers.items() if version != "1"), "answers", goal="0",
    )  # fmt: skip
    assert {version for _, version in traffic.answers} == {"1"}
    eventually(lambda: {*workers(running.pid)} == processes)  # nothing of the failed ones is left
    assert running.log is not None
    log = running.log.read_text()
    for name in names:
        assert any('"model_failed"' in line and f'"{name}"' in line for line in log.splitlines()), name


def test_a_bad_version_that_is_mended_takes_over(server: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    add(folder, 1)
    running = server({"m": str(folder)}, poll_s=0.1)
    add(folder, 3, more="raise RuntimeError('not yet')")
    eventually(lambda: getattr(statuses(running).get(("m", "3")), "state", "") == "UNAVAILABLE")
    (folder / ".new").write_text(code(3))
    (folder / ".new").rename(folder / "3" / "model.py")
    eventually(lambda: ask(running, "m")[:2] == ("3", 3))


def test_a_folder_with_broken_settings_does_not_stop_the_models_beside_it(server: Factory, tmp_path: Path) -> None:
    """F7: broken settings of one model, on the command line and named in the file."""
    repository = tmp_path / "repository"
    for name in ("broken", "beside"):
        add(repository / name, 1)
    add(tmp_path / "named", 1)
    running = server({"named": str(tmp_path / "named")}, serve=[str(repository)], poll_s=0.1)
    (repository / "broken" / "model.toml").write_text("max_queue = ")
    (tmp_path / "named" / "model.toml").write_text("no_such_option = 1")
    add(repository / "broken", 3)
    add(repository / "beside", 3)
    add(repository / "new", 1)
    eventually(lambda: ask(running, "beside")[:2] == ("3", 3))
    eventually(lambda: getattr(statuses(running).get(("new", "1")), "state", "") == "READY")
    eventually(lambda: "is no TOML" in statuses(running)["broken", "1"].reason)
    eventually(lambda: "no_such_option" in statuses(running)["named", "1"].reason)
    assert ask(running, "broken")[:2] == ("1", 1)
    assert ask(running, "named")[:2] == ("1", 1)
    (repository / "broken" / "model.toml").unlink()
    eventually(lambda: ask(running, "broken")[:2] == ("3", 3))
    shutil.rmtree(repository / "new")
    eventually(lambda: ("new", "1") not in statuses(running))
