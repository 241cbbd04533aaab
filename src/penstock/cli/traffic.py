"""`penstock traffic NAME`: who gets which share."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.platform import Address, Name, connect, pairs
from penstock.core.coercion import parameter
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
    fleet: Address = None,
) -> None:
    """Changes one thing about a deployment's traffic, and shows the shares."""
    from penstock.cli.output import print_table
    from penstock.cli.status_view import arms

    platform = connect(fleet)
    asked = [weights or None, policy, promote, retire, pause]
    if sum(one is not None for one in asked) > 1:
        raise InvalidInput("give one of REVISION=SHARE…, --policy, --promote, --retire, --pause")
    if option and policy is None:
        raise InvalidInput("--option needs --policy")
    if weights:
        platform.set_weights(name, _weights(weights))
    if policy is not None:
        options = {key: parameter(value) for key, value in pairs(option, "--option").items()}
        platform.set_policy(name, policy, **options)
    if promote is not None:
        platform.promote(name, promote)
    if retire is not None:
        platform.retire(name, retire)
    if pause is not None:
        platform.pause(name, pause)
    print_table(arms(platform.status(name)))


def _weights(given: list[str]) -> dict[int, float]:
    made = {}
    for key, value in pairs(given, "traffic").items():
        try:
            made[int(key)] = float(value)
        except ValueError:
            raise InvalidInput(f"{key}={value}: write REVISION=SHARE, such as 2=10") from None
    return made
