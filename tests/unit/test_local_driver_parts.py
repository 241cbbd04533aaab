"""What a replica is started with, and what is said of its end; no process is started here."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from penstock.core.errors import InvalidInput, LoadError
from penstock.fleet.local import command, groups, limits, lock_file, machine, output, overlay, variables
from penstock.fleet.local.reasons import reason
from penstock.fleet.spec import Run

MARKER = "fleet:one:0"


def read(
    run: Run, shares: Mapping[int, float] | None = None, name: str = "fraud",
    content: Mapping[str, str] | None = None, **defaults: object,
) -> dict:  # fmt: skip
    return tomllib.loads(command.configuration(name, run, Path("/m/model.onnx"), shares or {}, content or {}, defaults))


def test_configuration_is_what_the_run_says_on_loopback() -> None:
    run = Run(
        model="/m/model.onnx", trust=True, options={"workers": 2, "labels": {"a b": 1}, "timeout_s": 0.5},
        server={"access_log": True, "grace_s": 5},
    )  # fmt: skip
    read_back = read(run, name="a.b", threads=3)
    assert read_back["server"] == {
        "model_control": "none", "grace_s": 5, "access_log": True, "host": "127.0.0.1", "http_port": 0, "grpc_port": 0,
        "log_format": "json", "lame_duck_s": 0,
    }  # fmt: skip
    assert read_back["models"] == {
        "a.b": {
            "threads": 3, "workers": 2, "labels": {"a b": 1}, "timeout_s": 0.5, "path": "/m/model.onnx", "trust": True
        }
    }  # fmt: skip


def test_later_replica_of_a_revision_serves_its_versions_with_their_content_only() -> None:
    content = {"1": "a" * 64, "2": "b" * 64, "archive": "c" * 64}
    model = read(Run(model="/m", options={"versions": "all"}), content=content)["models"]["fraud"]
    assert model["versions"] == "1,2"
    assert model["sha256"] == {"1": "a" * 64, "2": "b" * 64}


@pytest.mark.parametrize("text", ['a"b\\c', "new\nline", "del\x7f", "snow ☃ and \U0001f600", "nul\0", "\x1b[1m"])
def test_any_text_comes_out_of_the_configuration_as_it_was(text: str) -> None:
    assert read(Run(model="/m", options={"options": {text: [text, {"deep": text}]}}))["models"]["fraud"]["options"] == {
        text: [text, {"deep": text}]
    }


def test_gpu_shares_become_devices_with_a_worker_each() -> None:
    half = read(Run(model="/m", gpu=0.5), {1: 0.5})["models"]["fraud"]
    assert (half["devices"], half["workers"]) == (["cuda:1*0.5"], 1), "two would fill the device"
    two = read(Run(model="/m", gpu=2), {3: 1.0, 0: 1.0})["models"]["fraud"]
    assert (two["devices"], two["workers"]) == (["cuda:0", "cuda:3"], 2)
    assert read(Run(model="/m", gpu=0.5, options={"workers": 3}), {0: 0.5})["models"]["fraud"]["workers"] == 3
    assert read(Run(model="/m", gpu=1e-9), {0: 1e-9})["models"]["fraud"]["devices"] == ["cuda:0*0.000001"]


def test_what_only_the_platform_may_set_is_refused() -> None:
    for run, shares in (
        (Run(model="/m", server={"api_key": "k"}), {}),
        (Run(model="/m", server={"host": "0.0.0.0"}), {}),
        (Run(model="/m", options={"path": "/other"}), {}),
        (Run(model="/m", gpu=1, options={"devices": ["cuda:1"]}), {0: 1.0}),
    ):
        with pytest.raises(InvalidInput, match="platform"):
            read(run, shares)


def test_graph_is_served_by_its_adapter() -> None:
    assert read(Run(graph="/g/graph.yaml"))["models"]["fraud"]["adapter"] == "graph"


def environment(run: Run, own_python: bool = False, **controllers: str) -> dict[str, str]:
    return variables.variables(run, controllers, MARKER, own_python, {"PENSTOCK_ENDPOINTS_URL": "http://router"})


def test_environment_is_little_of_the_controllers_and_all_of_the_runs() -> None:
    run = Run(model="/m", env={"LD_PRELOAD": "libjemalloc.so", "PYTHONPATH": "/mine"}, secrets={"KEY": "env:TOKEN"})
    made = environment(
        run, PATH="/bin", LC_ALL="C", TOKEN="t", OTHER_TOKEN="o", PENSTOCK_API_KEY="k", PENSTOCK_HTTP_PORT="1"
    )
    assert made == {
        "PATH": "/bin", "LC_ALL": "C", "LD_PRELOAD": "libjemalloc.so", "PYTHONPATH": "/mine", "KEY": "t",
        "PENSTOCK_ENDPOINTS_URL": "http://router", variables.MARKER: MARKER,
    }  # fmt: skip


def test_controllers_python_path_stays_outside_of_environments() -> None:
    assert "PYTHONPATH" not in environment(Run(model="/m"), True, PYTHONPATH="/src")
    assert environment(Run(model="/m"), False, PYTHONPATH="/src")["PYTHONPATH"] == "/src"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (Run(model="/m", env={"PENSTOCK_HOST": "::"}), "write options of the server"),
        (Run(model="/m", env={"PYTHONHOME": "/x"}), "interpreter's own library"),
        (Run(model="/m", env={"PYTHONINSPECT": "1"}), "never end"),
        (Run(model="/m", env={variables.MARKER: "x"}), "the platform's"),
        (Run(model="/m", env={"A=B": "1"}), "a name is letters"),
        (Run(model="/m", env={"A": "x" * (1 << 17)}), "at most"),
        (Run(model="/m", env={"A": "x\0y"}), "no NUL"),
        (Run(model="/m", gpu=0.5, env={"CUDA_VISIBLE_DEVICES": "1"}), "picks the devices"),
        (Run(model="/m", env={"A": "1"}, secrets={"A": "env:TOKEN"}), "write one"),
        (Run(model="/m", secrets={"A": "env:NONE"}), "no variable NONE"),
        (Run(model="/m", secrets={"A": "env:PENSTOCK_FLEET_KEY"}), "the platform's own"),
        (Run(model="/m", secrets={"A": "file:relative"}), "whole path"),
        (Run(model="/m", secrets={"A": "file:/"}), "cannot be read|is no file"),
        (Run(model="/m", secrets={"A": "file:/dev/zero"}), "is no file"),
    ],
)
def test_variables_that_cannot_be_are_refused(run: Run, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        environment(run, TOKEN="sesame", PENSTOCK_FLEET_KEY="sesame")
    assert "sesame" not in str(refused.value)


def test_reason_tells_how_it_ended_and_the_last_that_matters() -> None:
    lines = [
        '{"level":"info","event":"model_loading"}',
        '{"level":"error","event":"model_failed","error":"no weights"}',
        '{"event": "ready", "model": "x"}',
        "error  it is broken",
    ]
    assert reason("it ended with exit status 1", 0, None, lines) == (
        "it ended with exit status 1\nmodel_failed: no weights\nerror  it is broken"
    )
    assert reason("it was ended by SIGKILL", 1, 1 << 30, []) == (
        "the kernel killed it: it wanted more memory than its limit of 1024 MiB"
    )
    assert "1 of its processes for memory" in reason("it ended with exit status 1", 1, 1 << 20, [])
    assert len(reason("it ended", 0, None, ["x" * 10_000] * 1000)) < 3000


def test_lock_file_lines_are_what_pip_reads(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# made by a tool\n--index-url https://example.org/simple\nnumpy==2.3.5 \\\n    --hash=sha256:00 \\\n"
        "    --hash=sha256:11  # via me\nfoo[bar]==1.0 ; python_version >= '3.11'\nPenstock==9\n\n"
        "wheel @ https://example.org/wheel-1.whl\nfoo===1.0+cu121\n"
    )
    locked = lock_file.read(file)
    assert locked.hashed
    assert [line.split()[0] for line in locked.text.splitlines()] == [
        "--index-url", "numpy==2.3.5", "foo[bar]==1.0", "wheel", "foo===1.0+cu121",
    ]  # fmt: skip
    with pytest.raises(LoadError, match="cannot be read"):
        lock_file.read(tmp_path / "none.txt")


def test_overlay_holds_penstock_and_what_it_requires_alone() -> None:
    names = {part.name for part in overlay.parts()}
    assert {"penstock", "numpy", "msgspec", "uvloop", "grpcio"} <= names
    assert not names & {"pytest", "hypothesis", "scikit-learn", "pip"}


def test_last_lines_go_over_into_the_older_file(tmp_path: Path) -> None:
    (tmp_path / output.OLDER).write_text("1\n2\n3\n")
    (tmp_path / output.NAME).write_text("4\n5\nhalf a line")
    assert output.last_lines(tmp_path, 2) == ["5", "half a line"]
    assert output.last_lines(tmp_path, 5) == ["2", "3", "4", "5", "half a line"]
    assert output.last_lines(tmp_path, 0) == []
    (tmp_path / output.NAME).write_text("")
    assert output.last_lines(tmp_path, 1) == ["3"]


def test_log_is_cut_and_its_end_is_kept(tmp_path: Path) -> None:
    log = tmp_path / output.NAME
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * 99 + b"\n")
        assert not output.bound(tmp_path, 100)
        writer.write(b"b\n")
        assert output.bound(tmp_path, 100)
        writer.write(b"c\n")  # at the new end, not at the old place
    assert log.read_bytes() == b"c\n"
    assert output.last_lines(tmp_path, 2) == ["b", "c"]
    assert (tmp_path / output.OLDER).stat().st_size == 102
    log.write_bytes(b"d" * 999 + b"\n")
    assert output.bound(tmp_path, 100)
    assert (tmp_path / output.OLDER).read_bytes() == b"d" * 99 + b"\n", "of one that writes too fast, the last"


def test_groups_of_version_2_are_made_beside_the_own_one(tmp_path: Path) -> None:
    """A tree of plain files: what the kernel would do to them is not tested here."""
    service = tmp_path / "penstock.service"
    own = service / "up"
    own.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (service / "cgroup.subtree_control").write_text("cpu memory\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/penstock.service/up\n")
    made = groups.make("penstock.f.one", groups.Limits(1.5, 1 << 30), tmp_path, membership)
    assert made == groups.Made((service / "penstock.f.one",), cpu=True, memory=True)
    assert (service / "penstock.f.one" / "cpu.max").read_text() == "150000 100000"
    assert (service / "penstock.f.one" / "memory.max").read_text() == str(1 << 30)
    assert (service / "penstock.f.one" / "memory.oom.group").read_text() == "1"
    assert groups.leftovers("penstock.f.", tmp_path, membership) == [service / "penstock.f.one"]
    (service / "penstock.f.one" / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert groups.kills_for_memory(made.folders) == 2
    membership.write_text("0::/user.slice\n")
    assert groups.make("penstock.f.two", groups.Limits(1.0), tmp_path, membership) == groups.Made()


def test_start_has_a_processor_if_there_is_one() -> None:
    assert limits.starting_cpu(0.25, None) == 1.0
    assert limits.starting_cpu(0.25, 0.5) == 0.5, "more than the group above has would be refused"
    assert limits.starting_cpu(2.0, None) == 2.0


def test_limits_of_this_process_bound_its_place(tmp_path: Path) -> None:
    own = tmp_path / "a" / "b"
    own.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "a" / "memory.max").write_text("1000\n")
    (own / "memory.max").write_text("max\n")
    (tmp_path / "a" / "cpu.max").write_text("max 100000\n")
    (own / "cpu.max").write_text("150000 100000\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/a/b\n")
    assert groups.memory_limit(tmp_path, membership) == 1000
    assert groups.cpu_limit(tmp_path, membership) == 1.5


def test_gpus_are_counted_by_their_devices(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert machine.place({}, tmp_path).gpus == 2
    assert machine.place({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path).gpus == 1
    assert machine.place({"CUDA_VISIBLE_DEVICES": ""}, tmp_path).gpus == 0
    assert machine.place({}, tmp_path / "none").gpus == 0


async def test_follower_reads_over_a_cut(tmp_path: Path) -> None:
    log = tmp_path / output.NAME
    with log.open("ab", buffering=0) as writer:
        writer.write(b"1\n2\n")
        going_on = True
        lines = output.follow(tmp_path, 1, lambda: going_on, 5)
        seen = [await anext(lines)]
        writer.write(b"3\n4\n")
        assert output.bound(tmp_path, 5)
        writer.write(b"5\n")
        going_on = False
        seen += [line async for line in lines]
    assert seen == ["2", "3", "4", "5"]
