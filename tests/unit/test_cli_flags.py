"""Flags come from the dataclasses, all of them."""

from __future__ import annotations

import re
import subprocess
import sys

import typer

from penstock.cli import serve
from penstock.cli.flags import ELSEWHERE
from penstock.config import options_of
from penstock.runtime.options import ModelOptions, ServerOptions


def test_every_option_has_a_flag_on_serve() -> None:
    command = typer.main.get_command(serve.app)
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    for kind in (ServerOptions, ModelOptions):
        for name, option in options_of(kind).items():
            assert option.flag in flags or name in ELSEWHERE
            if option.annotation is bool and name not in ELSEWHERE:
                assert f"--no-{option.flag[2:]}" in flags


def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli", *command, "--help"],
        capture_output=True, text=True, check=True, env={"COLUMNS": "80"},
    )  # fmt: skip
    return done.stdout


def test_help_names_every_flag_in_full_on_a_narrow_terminal() -> None:
    text = help_of("serve")
    command = typer.main.get_command(serve.app)
    for parameter in command.params:
        for flag in (*parameter.opts, *parameter.secondary_opts):
            assert not flag.startswith("--") or re.search(rf"{flag}(?=[\s,])", text), flag
    assert max(map(len, text.splitlines())) <= 80
    assert "Server options:" in text and "Model options:" in text
    assert "..." not in help_of().partition("Commands:")[2]  # no command's line is cut off either


def test_help_shows_defaults_and_allowed_values() -> None:
    text = " ".join(help_of("serve").split())
    assert "HTTP port; 0 takes a free one. [default: 8080]" in text
    assert "auto|inline|process" in text
    assert "[default: 256MiB]" in text
