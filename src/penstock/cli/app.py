"""The `penstock` command: finds the command's module, runs it, and turns errors into lines and exit codes.

Exit codes: 0 done; 1 it failed (a model did not load, no server answered); 2 what was asked can never work (an unknown
option, a wrong value, no such model); 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from penstock.core.errors import InvalidInput, NotFound, PenstockError
from penstock.core.nearest import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "serve": "penstock.cli.serve",
    "config": "penstock.cli.configuration",
    "models": "penstock.cli.models",
    "predict": "penstock.cli.predict",
    "bench": "penstock.cli.bench",
    "up": "penstock.cli.up",
    "deploy": "penstock.cli.deploy",
    "status": "penstock.cli.status",
    "traffic": "penstock.cli.traffic",
    "comparison": "penstock.cli.comparison",
    "rollback": "penstock.cli.rollback",
    "logs": "penstock.cli.logs",
    "apply": "penstock.cli.apply",
    "diff": "penstock.cli.diff",
    "delete": "penstock.cli.delete",
    "tenants": "penstock.cli.tenants",
    "down": "penstock.cli.down",
    "graph": "penstock.cli.graph",
    "evaluate-policy": "penstock.cli.evaluate_policy",
    "memory": "penstock.cli.memory",
    "quantize": "penstock.cli.quantize",
    "version": "penstock.cli.version",
}


# A command that a flag turns into another one, with options of its own.
_VARIANTS = {("bench", "--ledger"): "penstock.cli.ledger"}


class LazyCommands(TyperGroup):
    """A group whose commands are imported when they are asked for. Each module has a Typer `app` with one command."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The first sentence of each command in full; click's own list cuts it off."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.get_command(ctx, name).get_short_help_str(limit=1000)) for name in COMMANDS]
            )

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return _command(cmd_name, COMMANDS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = nearest(args[0], COMMANDS)
            raise InvalidInput(f"there is no command {args[0]!r}{near}; there are {', '.join(COMMANDS)}")
        for (name, flag), module in _VARIANTS.items():
            if args and args[0] == name and flag in args:
                return f"{name} {flag}", _command(f"{name} {flag}", module), [one for one in args[1:] if one != flag]
        return super().resolve_command(ctx, args)


def _command(name: str, module: str) -> Any:
    command = typer.main.get_command(importlib.import_module(module).app)
    command.name = name
    return command


def application() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        cls=LazyCommands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def root() -> None:
        """Serves machine-learning models: one server with `serve`, a platform of many with `up` and `deploy`."""

    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits; with `arguments` instead of the process's own where given."""
    command = typer.main.get_command(application())
    try:
        command.main(args=None if arguments is None else list(arguments), prog_name="penstock")
    except PenstockError as error:
        from penstock.cli.output import complain

        complain(error)
        sys.exit(2 if isinstance(error, (InvalidInput, NotFound)) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `penstock models | head`
        sys.stderr.close()
        sys.exit(1)
