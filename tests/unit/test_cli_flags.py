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


def test_help_shows_defaults_and_allowed_values() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli", "serve", "--help"],
        capture_output=True, text=True, check=True, env={"COLUMNS": "200"},
    )  # fmt: skip
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stdout).split())
    assert "HTTP port; 0 takes a free one. [default: 8080]" in text
    assert "auto|inline|process" in text
    assert "[default: 256MiB]" in text
