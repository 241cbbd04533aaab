"""`penstock evaluate-policy` on log files."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.cli.app import main
from penstock.fleet.feedback import lines
from penstock.fleet.store.batch import Decision, LoggedDecision


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arm 1 earns 0.2, arm 2 earns 0.6; arm 2 was taken by one in ten. Every tenth has no reward. An older experiment
    comes first."""
    generator = np.random.default_rng(1)
    file = tmp_path_factory.mktemp("log") / "decisions.jsonl"
    with file.open("wb") as out:
        for number in range(4000):
            revision = 2 if generator.random() < 0.1 else 1
            reward = float(generator.random() < (0.6 if revision == 2 else 0.2))
            experiment = 3 if number < 200 else 4
            made = Decision(
                f"{number:016x}", "fraud", experiment, revision, 0.1 if revision == 2 else 0.9, 1e9 + number
            )
            known = number % 10 != 0
            out.write(
                lines.write(LoggedDecision(made, reward if known else None, 1e9 + number + 0.5 if known else None))
            )
    return file


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process: a new one for each would take most of the time."""

    def run_(*arguments: object, given: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["evaluate-policy", *map(str, arguments)])
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run_


def told(run: Run, *arguments: object, given: bytes = b"") -> dict[str, Any]:
    done = run(*arguments, "--json", given=given)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_policies_are_judged_from_a_file(run: Run, log: Path) -> None:
    found = told(
        run, log, "--policy", "uniform", "--policy", "revision:2", "--policy", "weights:1=3,2=1", "--policy", "thompson"
    )  # fmt: skip
    assert (found["experiment"], found["arms"], found["decisions"], found["used"]) == (4, [1, 2], 3800, 3420)
    policies = found["policies"]
    for name, truth in (("uniform", 0.4), ("revision:2", 0.6), ("weights:1=3,2=1", 0.3)):
        for estimator in ("ips", "snips", "dr"):
            estimate = policies[name][estimator]
            assert estimate["value"] == pytest.approx(truth, abs=4 * estimate["standard_error"])
            assert estimate["standard_error"] < 0.1
    assert policies["thompson"]["snips"]["value"] > 0.5


def test_the_table_has_a_line_per_estimator_and_tells_what_is_missing(run: Run, log: Path) -> None:
    done = run(log, "--policy", "uniform")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0][:4] == ["policy", "estimator", "reward", "± error"]
    assert [row[:2] for row in rows[1:]] == [
        ["logged", ""],
        ["uniform", "ips"],
        ["uniform", "snips"],
        ["uniform", "dr"],
    ]
    assert "380 of 3,800 decisions have no reward" in done.stderr


def test_a_decision_without_reward_may_be_a_zero(run: Run, log: Path) -> None:
    assert told(run, log, "--policy", "uniform", "--unrewarded", "zero")["used"] == 3800


def test_an_experiment_and_a_time_are_chosen(run: Run, log: Path) -> None:
    assert told(run, log, "--policy", "uniform", "--experiment", 3)["decisions"] == 200
    assert told(run, log, "--policy", "uniform", "--since", 1e9 + 3000)["decisions"] == 1000


def test_a_log_may_come_from_a_pipe(log: Path) -> None:
    command = [sys.executable, "-m", "penstock.cli", "evaluate-policy", "-", "--policy", "uniform", "--json"]
    done = subprocess.run(command, input=log.read_bytes(), capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["used"] == 3420


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "tompson"], "uniform, revision:N"),
        (["--policy", "revision:x"], "revision:2"),
        (["--policy", "weights:1=0"], "one is above"),
        (["--policy", "weights:1"], "KEY=VALUE"),
        (["--policy", "thompson", "--option", "nonsense=1"], "nonsense"),
        (["--policy", "uniform", "--experiment", "9"], "there are 3, 4"),
        (["--policy", "uniform", "--unrewarded", "x"], "drop or zero"),
        (["--policy", "thompson", "--stable", "7"], "--stable is 7"),
        (["--policy", "uniform", "--confidence", "2"], "between 0 and 1"),
    ],
)
def test_what_cannot_be_says_why(run: Run, log: Path, arguments: list[str], words: str) -> None:
    done = run(log, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no decisions"),
        (b'{"revision": 1}\n', "line 1 of the log"),
        (b'\n{"revision": 1, "propensity": 0}\n', "line 2 of the log: propensity is 0"),
        (b"junk\n", "line 1 of the log"),
        (b'{"revision": 1, "propensity": 1}\n', "2 are needed"),
    ],
)
def test_a_file_that_is_no_log_says_where(run: Run, text: bytes, words: str) -> None:
    done = run("-", "--policy", "uniform", given=text)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_revision_that_the_log_never_took_is_told(run: Run, log: Path) -> None:
    found = told(run, log, "--policy", "revision:9")
    assert found["policies"]["revision:9"]["ips"]["value"] == 0
    assert "never took" in found["policies"]["revision:9"]["warnings"][0]
