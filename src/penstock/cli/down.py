"""`penstock down`: stops the platform of a state's folder, also what a killed `penstock up` left running."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.command import Command

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def down(
    state: Annotated[
        str | None, typer.Option("--state", metavar="FOLDER", help="The platform's state [default: the usual folder].")
    ] = None,
    grace_s: Annotated[float, typer.Option("--grace-s", metavar="SECONDS", help="Time for requests in flight.")] = 30.0,
) -> None:
    """Stops the controller, the routers and all replicas; requests in flight are answered first."""
    from penstock.cli.output import out
    from penstock.core.errors import NotFound, NotReady
    from penstock.fleet.up import tree
    from penstock.fleet.up.leftovers import stop_leftovers
    from penstock.fleet.up.supervisor import state_folder

    folder = state_folder(state)
    found = tree.members(folder)
    holder = next((one for one in found if one.name == "up"), None)
    if holder is not None:
        if not tree.end(holder, 2 * grace_s + 30.0):
            raise NotReady(
                f"process {holder.pid} did not end within {2 * grace_s + 30:g} s; it still waits for requests"
            )
    elif not stop_leftovers(folder, found, grace_s):
        raise NotFound(f"no platform with the state {folder} is running")
    out().print(f"stopped  {folder}")
