"""Which platform a command talks to, and what commands about deployments share."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from penstock.cli.output import out
from penstock.client.fleet import Fleet
from penstock.client.fleet_status import Change, Status
from penstock.core.coercion import parameter
from penstock.core.errors import InvalidInput

Address = Annotated[
    str | None,
    typer.Option(
        "--fleet",
        metavar="FOLDER|URL",
        help="The platform: its state's folder, or its admin port; else PENSTOCK_FLEET, else ~/.local/share/penstock.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The deployment.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the newest revision serves, or failed.")]


def connect(address: str | None) -> Fleet:
    """A client of what the flag, the environment or the default name."""
    return Fleet(address)


def pairs(given: list[str] | None, flag: str) -> dict[str, str]:
    """`KEY=VALUE` texts as a mapping. Raises: InvalidInput."""
    made = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidInput(f"{flag} {text}: write KEY=VALUE")
        made[key] = value
    return made


def settings(given: list[str] | None, flag: str) -> dict[str, str | None]:
    """`KEY=VALUE` texts, and `KEY-` for one that is to be taken out: None. Raises: InvalidInput."""
    made: dict[str, str | None] = {}
    for text in given or ():
        if text.endswith("-") and "=" not in text:
            made[text[:-1]] = None
        else:
            made |= pairs([text], flag)
    return made


def read_option(text: str) -> object:
    """A policy's or model's option as it was typed: true, a number, text, or a list or table in JSON.

    Raises: InvalidInput."""
    if not text.startswith(("[", "{")):
        return parameter(text)
    try:
        made: object = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{text} begins like JSON and is none: {error}") from None
    return made


def tell(change: Change) -> None:
    """Says what a change did, on a terminal and off it alike."""
    if not change.changed:
        out().print(f"{change.name}  unchanged  (revision {change.revision})")
        return
    out().print(f"{change.name}  generation {change.generation}  revision {change.revision}")


def follow(fleet: Fleet, name: str) -> Status:
    """Waits for the newest revision, saying what happens meanwhile. Raises: LoadError, NotReady."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status(f"waiting for {name}") if console.is_terminal else _silence():
        status = fleet.wait(name)
    out().print(f"[bold green]{status.phase}[/]  {name}  {status.message}".rstrip())
    return status


class _silence:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
