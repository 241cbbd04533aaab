"""The commands as a user runs them: in processes of their own, against a real server where they need one."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

IRIS = """
import penstock

@penstock.model(inputs={"x": "f4[n, 4]"}, outputs={"long": "bool[n]", "total": "f4[n]"})
def iris(x):
    return {"long": x[:, 2] > 2.5, "total": x.sum(axis=1)}
"""


def penstock(
    *arguments: str, cwd: Path | None = None, stdin: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
    return subprocess.run(
        [sys.executable, "-m", "penstock.cli", *arguments],
        cwd=cwd, input=stdin, text=True, capture_output=True, timeout=50, check=False, env={**clean, **(env or {})},
    )  # fmt: skip


def answer(*arguments: str, **rest: Any) -> str:
    done = penstock(*arguments, **rest)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(*arguments: str, status: int = 2, **rest: Any) -> str:
    done = penstock(*arguments, **rest)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def iris(tmp_path: Path) -> Path:
    path = tmp_path / "flowers.py"
    path.write_text(IRIS)
    return path


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for the tests that only ask."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "flowers.py").write_text(IRIS)
    command = ["serve", "flowers.py:iris", "--http-port", "0", "--no-grpc", "--workers", "1", "--log-level", "error"]
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", *command], stdout=subprocess.PIPE, text=True, cwd=folder
    )
    assert process.stdout is not None
    try:
        serving = next(event for event in map(json.loads, process.stdout) if event["event"] == "serving")
        yield str(serving["http"])
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def test_importing_penstock_takes_no_numpy_and_no_time() -> None:
    code = "import sys, penstock; print(sorted({'numpy', 'asyncio', 'grpc', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_version_imports_no_framework_and_names_those_it_finds() -> None:
    told = json.loads(answer("version", "--json"))
    assert {"penstock", "python", "onnxruntime"} <= set(told)
    code = (
        "import sys; from penstock.cli import main\ntry: main(['version'])\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'onnxruntime', 'grpc', 'sklearn', 'asyncio'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.alone
def test_version_is_quick() -> None:
    def seconds() -> float:
        """Processor time, which a busy machine stretches less than the clock's."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer("version")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.2  # 0.1 s measured


def test_every_command_has_help() -> None:
    overview = answer("--help")
    for command in ("serve", "config", "models", "predict", "bench", "version"):
        assert f"penstock {command}" in answer(command, "--help")
        assert command in overview


def test_an_unknown_command_names_the_nearest() -> None:
    assert "did you mean 'serve'" in refusal("sevre")


def test_config_shows_values_with_their_places(iris: Path) -> None:
    (iris.parent / "penstock.toml").write_text('[server]\ngrace_s = "500ms"\n[models.iris]\nmax_queue = 7\n')
    told = json.loads(
        answer(
            "config",
            "flowers.py:iris",
            "--http-port",
            "9",
            "--no-grpc",
            "--json",
            cwd=iris.parent,
            env={"PENSTOCK_MODEL_WORKERS": "2", "PENSTOCK_API_KEY": "hunter2"},
        )
    )
    assert told["server"]["http_port"] == {"value": 9, "from": "flag --http-port"}
    assert told["server"]["grpc"] == {"value": False, "from": "flag --grpc"}
    assert told["server"]["grace_s"] == {"value": 0.5, "from": "file penstock.toml [server]"}
    assert told["server"]["api_key"] == {"value": "…", "from": "environment PENSTOCK_API_KEY"}
    assert told["models.iris"]["workers"] == {"value": 2, "from": "environment PENSTOCK_MODEL_WORKERS"}
    assert told["models.iris"]["max_queue"] == {"value": 7, "from": "file penstock.toml [models.iris]"}
    assert told["models.iris"]["path"] == {"value": "flowers.py:iris", "from": "path flowers.py:iris"}
    assert told["models.iris"]["timeout_s"] == {"value": 60.0, "from": "default"}


def test_config_can_leave_out_defaults(tmp_path: Path) -> None:
    lines = answer("config", "--changed", "--grace-s", "2", cwd=tmp_path).splitlines()
    assert lines == ["table\toption\tvalue\tfrom", "server\tgrace_s\t2\tflag --grace-s"]


def test_lists_and_tables_can_be_given_in_one_flag_or_several(iris: Path) -> None:
    told = json.loads(
        answer(
            "config",
            "flowers.py:iris",
            "--json",
            "--batch-sizes",
            "1,2",
            "--batch-sizes",
            "4",
            "--max-batch-size",
            "4",
            "--labels",
            "old=1",
            "--labels",
            "new=2",
            "--inputs",
            "x=f4[n, 4]",
            cwd=iris.parent,
        )
    )["models.iris"]
    assert told["batch_sizes"]["value"] == [1, 2, 4]
    assert told["labels"]["value"] == {"old": 1, "new": 2}
    assert told["inputs"]["value"] == {"x": "f4[n, 4]"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve"], "there is nothing to serve"),
        (["serve", "nowhere.onnx"], "nowhere.onnx"),
        (["serve", "flowers.py:iris", "--http-port", "eighty"], "flag --http-port: http_port is 'eighty'; write a wh"),
        (["serve", "flowers.py:iris", "--http-prot", "80"], "--http-port"),
        (["serve", "flowers.py:iris", "--host", "0.0.0.0"], "there is no API key"),
        (["serve", "flowers.py:iris", "--config", "missing.toml"], "missing.toml: cannot be read"),
        (["serve", "flowers.py:iris", "--trust", "other.pkl"], "is none of the models served"),
        (["predict", "iris"], "--made-up"),
        (["bench", "iris", "--protocol", "http3"], "http or grpc"),
        (["models", "--url", "ftp://x"], "ftp"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused_in_one_line_with_status_2(iris: Path, arguments: list[str], says: str) -> None:
    assert says in " ".join(refusal(*arguments, cwd=iris.parent).split())


def test_an_unknown_name_in_the_environment_is_refused(iris: Path) -> None:
    message = refusal("serve", "flowers.py:iris", cwd=iris.parent, env={"PENSTOCK_HTTP_PROT": "9"})
    assert "did you mean 'PENSTOCK_HTTP_PORT'" in message


def test_a_command_without_a_server_says_how_to_start_one() -> None:
    message = refusal("models", "--url", "http://127.0.0.1:9", status=1)
    assert "penstock serve" in message and "--url" in message


def test_a_model_that_does_not_load_ends_the_server_with_status_1(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def broken(x):\n    return 1\nraise RuntimeError('no weights')\n")
    done = penstock("serve", "broken.py:broken", "--http-port", "0", "--no-grpc", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]  # before it stands the log
    assert last.startswith("error") and "no weights" in last


def test_serve_tells_where_and_stops_on_sigint(server: Callable[..., Any], iris: Path) -> None:
    running = server({"iris": f"{iris}:iris"})
    ready = json.loads(running.lines[0])
    assert (ready["event"], ready["model"], ready["version"], ready["adapter"]) == ("ready", "iris", 1, "python")
    assert ready["http"] == f"{running.http}/v2/models/iris/infer"
    assert running.stop(signal.SIGINT) == 0


def test_the_call_printed_on_a_terminal_works(iris: Path) -> None:
    import pty

    from penstock.client import Client

    main, far = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", "serve", "flowers.py:iris", "--http-port", "0", "--no-grpc"],
        stdout=far, stderr=subprocess.DEVNULL, cwd=iris.parent,
    )  # fmt: skip
    os.close(far)
    seen = b""
    try:
        while b"\ntry" not in seen.replace(b"\x1b[2m", b"") or not seen.endswith(b"\n"):
            seen += os.read(main, 4096)
        text = seen.decode()
        assert "ready" in text and "iris@1" in text and "\x1b[" in text
        line = next(line for line in text.splitlines() if "curl" in line)
        body = json.loads(line[line.index("{") : line.rindex("}") + 1])
        url = line.split("curl -s ")[1].split("/v2/")[0]
        (sent,) = body["inputs"]
        with Client(url) as client:
            result = client.infer("iris", {"x": np.array(sent["data"], "f4").reshape(sent["shape"])})
        assert result["total"].tolist() == [0.0]
    finally:
        process.terminate()
        process.wait(20)
        os.close(main)


def test_predict_reads_json_csv_numpy_and_standard_input(url: str, tmp_path: Path) -> None:
    rows = [[1, 2, 3, 4], [0, 0, 0, 1.5]]
    (tmp_path / "plain.csv").write_text("1,2,3,4\n0,0,0,1.5\n")
    (tmp_path / "titled.csv").write_text("a,b,c,d\n1,2,3,4\n0,0,0,1.5\n")
    (tmp_path / "keyed.json").write_text(json.dumps({"x": rows}))
    v2 = {"inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [1, 2, 3, 4, 0, 0, 0, 1.5]}]}
    (tmp_path / "v2.json").write_text(json.dumps(v2))
    np.save(tmp_path / "rows.npy", np.array(rows))
    forms = [json.dumps(rows), "plain.csv", "titled.csv", "keyed.json", "v2.json", "rows.npy"]
    expected = "long\ttotal\nTrue\t10\nFalse\t1.5\n"
    for form in forms:
        assert answer("predict", "iris", form, "--url", url, cwd=tmp_path) == expected, form
    assert answer("predict", "iris", "-", "--url", url, stdin=json.dumps({"x": rows})) == expected
    assert answer("predict", "iris", "-", "--url", url, stdin="1,2,3,4\n0,0,0,1.5\n") == expected


def test_predict_adds_the_batch_axis_and_answers_in_json(url: str) -> None:
    told = json.loads(answer("predict", "iris@1", "[1, 2, 3, 4]", "--json", env={"PENSTOCK_URL": url}))
    assert told == {"model": "iris", "version": "1", "outputs": {"long": [True], "total": [10.0]}}


def test_predict_can_make_inputs_up_and_tell_the_server_s_time(url: str) -> None:
    done = penstock("predict", "iris", "--made-up", "--rows", "3", "--timing", "--url", url)
    assert len(done.stdout.splitlines()) == 4
    assert "queue" in done.stderr and "compute" in done.stderr


def test_predict_refuses_what_does_not_fit(url: str) -> None:
    cases = {
        "[[1, 2]]": "the model expects [-1, 4]",
        '{"y": [1]}': "has no input 'y'; it has x",
        "missing.csv": "is no file",
        "[1, 2": "is no JSON",
        '["a"]': "are no FP32",
    }
    for given, says in cases.items():
        assert says in refusal("predict", "iris", given, "--url", url)
    assert "irs" in refusal("predict", "irs", "[[1, 2, 3, 4]]", "--url", url)


def test_predict_prints_a_stream_s_answers_as_they_come(server: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text(
        "import penstock\n\n"
        "@penstock.model(inputs={'x': 'f8[n]'}, outputs={'total': 'f8[]', 'word': 'str[]'})\n"
        "def count(x):\n    for i in range(len(x)):\n        yield {'total': x[: i + 1].sum(), 'word': f'w{i}'}\n"
    )
    running = server({"count": f"{tmp_path / 'count.py'}:count"})
    assert answer("predict", "count", "[1, 2]", "--url", running.http) == "total\tword\n1.0\tw0\n3.0\tw1\n"
    lines = answer("predict", "count", "[1, 2]", "--json", "--url", running.http).splitlines()
    assert [json.loads(line) for line in lines] == [{"total": 1.0, "word": "w0"}, {"total": 3.0, "word": "w1"}]


def test_commands_reach_a_server_that_asks_for_certificates(
    server: Callable[..., Any], iris: Path, tmp_path: Path
) -> None:
    ca = trustme.CA()
    for name, leaf in (("server", ca.issue_cert("127.0.0.1")), ("client", ca.issue_cert("me@example.org"))):
        leaf.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / f"{name}.pem"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    both = str(tmp_path / "server.pem")
    running = server({"iris": f"{iris}:iris"}, tls_cert=both, tls_key=both, tls_client_ca=str(tmp_path / "ca.pem"))
    flags = ["--url", running.http, "--ca-file", "ca.pem", "--client-cert", "client.pem"]
    assert "iris" in answer("models", *flags, cwd=tmp_path)
    assert "total" in answer("predict", "iris", "--made-up", *flags, cwd=tmp_path)
    bench = ["bench", "--duration", "0.2", "--json", *flags]
    assert json.loads(answer(*bench, cwd=tmp_path))["errors"] == 0
    grpc = ["--protocol", "grpc", "--grpc-address", running.grpc]
    assert json.loads(answer(*bench, *grpc, cwd=tmp_path))["errors"] == 0

    assert "--ca-file" in refusal("models", "--url", running.http, status=1)
    plain = running.http.replace("https", "http")
    assert "https://" in refusal("models", "--url", plain, status=1)
    assert "cannot use" in refusal("models", "--url", running.http, "--ca-file", both + "x")
    assert "needs --client-cert" in refusal("models", "--url", running.http, "--client-key", both)


def row_of(url: str) -> dict[str, Any]:
    (row,) = json.loads(answer("models", "--json", "--url", url))
    return dict(row)


def test_models_lists_what_is_loaded_with_figures(url: str) -> None:
    before = row_of(url)["requests"]
    for _ in range(3):
        answer("predict", "iris", "[[1,2,3,4]]", "--url", url)
    row = row_of(url)
    assert (row["model"], row["version"], row["state"], row["executor"]) == ("iris", "1", "READY", "process")
    assert row["requests"] == before + 3
    assert row["path"] == "flowers.py:iris" and len(row["sha256"]) == 12
    assert 0 < float(row["p50 ms"]) <= float(row["p99 ms"])
    header, line = answer("models", "--url", url).splitlines()
    assert header.split("\t")[0] == "model" and line.split("\t")[0] == "iris"


def test_bench_counts_what_the_server_counts(url: str) -> None:
    before = row_of(url)["requests"]
    told = json.loads(answer("bench", "--duration", "0.5", "--connections", "4", "--rows", "2", "--json", "--url", url))
    assert told["errors"] == 0 and told["requests"] > 100
    assert told["rows/s"] == pytest.approx(2 * told["requests/s"], rel=1e-3)
    assert told["p50 ms"] <= told["p99 ms"] <= told["max ms"]
    assert told["server compute ms (mean)"] > 0
    assert row_of(url)["requests"] == before + told["requests"] + 1  # the one call that is made first


def test_bench_measures_grpc_and_can_start_the_server_itself(iris: Path) -> None:
    arguments = ["bench", "iris", "--serve", f"{iris}:iris", "--protocol", "grpc", "--duration", "0.5", "--json"]
    told = json.loads(answer(*arguments, "--connections", "2"))
    assert told["errors"] == 0 and told["requests"] > 10


def test_an_api_key_is_asked_for_and_taken_from_the_environment(server: Callable[..., Any], iris: Path) -> None:
    running = server({"iris": f"{iris}:iris"}, api_key="hunter2")
    message = refusal("models", "--url", running.http, status=1)
    assert "hunter2" not in message
    assert "iris" in answer("models", "--url", running.http, env={"PENSTOCK_API_KEY": "hunter2"})
