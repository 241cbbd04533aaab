"""`penstock traffic NAME`: who gets which share."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.platform import Address, Name, connect, pairs, read_option
from penstock.core.errors import InvalidInput

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def traffic(
    name: Name,
    weights: Annotated[
        list[str] | None, typer.Argument(metavar="REVISION=SHARE…", help="Fixed shares, such as 1=90 2=10.")
    ] = None,
    policy: Annotated[str | None, typer.Option("--policy", metavar="POLICY", help="Let a policy decide.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of that policy.")
    ] = None,
    promote: Annotated[
        int | None, typer.Option("--promote", metavar="REVISION", help="Give it everything; the others retire.")
    ] = None,
    retire: Annotated[int | None, typer.Option("--retire", metavar="REVISION", help="Take one revision out.")] = None,
    pause: Annotated[
        bool | None, typer.Option("--pause/--resume", help="Keep the weights as they are, or let the policy go on.")
    ] = None,
    sticky: Annotated[
        str | None,
        typer.Option(
            "--sticky", metavar="header:NAME", help="Keep callers on one arm by a header or cookie (cookie:NAME); off."
        ),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            "--shadow", metavar="REVISION[:SHARE]", help="Send a revision copies of requests, such as 3:0.2; off."
        ),
    ] = None,
    fleet: Address = None,
) -> None:
    """Changes one thing about a deployment's traffic, and shows the shares."""
    from penstock.cli.output import print_table
    from penstock.cli.status_view import arms

    platform = connect(fleet)
    asked = [weights or None, policy, promote, retire, pause, sticky, shadow]
    if sum(one is not None for one in asked) > 1:
        raise InvalidInput("give one of REVISION=SHARE…, --policy, --promote, --retire, --pause, --sticky, --shadow")
    if option and policy is None:
        raise InvalidInput("--option needs --policy")
    if weights:
        platform.set_weights(name, _weights(weights))
    if policy is not None:
        options = {key: read_option(value) for key, value in pairs(option, "--option").items()}
        platform.set_policy(name, policy, **options)
    if promote is not None:
        platform.promote(name, promote)
    if retire is not None:
        platform.retire(name, retire)
    if pause is not None:
        platform.pause(name, pause)
    if sticky is not None:
        by, _, key = sticky.partition(":")
        platform.set_sticky(name, None if sticky == "off" else by, key)
    if shadow is not None:
        platform.set_shadow(name, *_shadow(shadow))
    print_table(arms(platform.status(name)))


def _weights(given: list[str]) -> dict[int, float]:
    made = {}
    for key, value in pairs(given, "traffic").items():
        try:
            made[int(key)] = float(value)
        except ValueError:
            raise InvalidInput(f"{key}={value}: write REVISION=SHARE, such as 2=10") from None
    return made


def _shadow(given: str) -> tuple[int | None, float]:
    number, _, share = given.partition(":")
    try:
        return (None, 1.0) if given == "off" else (int(number), float(share or 1.0))
    except ValueError:
        raise InvalidInput(f"--shadow {given}: write REVISION, REVISION:SHARE such as 3:0.2, or off") from None
