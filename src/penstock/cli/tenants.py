"""`penstock tenants`: who may call, and how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.platform import Address, AsJson, connect
from penstock.core.errors import InvalidInput

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def tenants(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Make, change or show this one; unset: list all.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", metavar="NUMBER", help="Requests per second.")] = None,
    burst: Annotated[int | None, typer.Option("--burst", metavar="NUMBER", help="Requests at once.")] = None,
    quota: Annotated[int | None, typer.Option("--quota", metavar="NUMBER", help="Requests per period.")] = None,
    quota_period_s: Annotated[
        float | None, typer.Option("--quota-period-s", metavar="SECONDS", help="That period [default: a day].")
    ] = None,
    weight: Annotated[
        float | None, typer.Option("--weight", metavar="NUMBER", help="Share where requests wait [default: 1].")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option("--tokens-per-minute", metavar="NUMBER", help="Of language models, prompt and output.")
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option("--tokens-per-day", metavar="NUMBER", help="Of language models; days of UTC.")
    ] = None,
    deployment: Annotated[
        list[str] | None, typer.Option("--deployment", metavar="NAME", help="May call only this one; several times.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Refuse its key from now on.")] = False,
    as_json: AsJson = False,
    fleet: Address = None,
) -> None:
    """Lists tenants, makes one (its key is shown once), changes or deletes one.

    As soon as there is a tenant, every request needs a key: `Authorization: Bearer KEY`.
    """
    from penstock.cli.output import out, print_json, print_table

    platform = connect(fleet)
    limits = {
        "rate": rate, "burst": burst, "quota": quota, "quota_period_s": quota_period_s, "weight": weight,
        "deployments": deployment, "tokens_per_minute": tokens_per_minute, "tokens_per_day": tokens_per_day,
    }  # fmt: skip
    if name is None and (delete or _given(limits)):
        raise InvalidInput("which tenant? Write its NAME too")
    if name is not None and delete:
        platform.delete_tenant(name)
        out().print(f"{name}  deleted")
        return
    known = {one.name: one for one in platform.tenants()}
    if name is not None and (name not in known or _given(limits)):
        present = known.get(name)
        kept = {key: getattr(present, key) for key in limits} if present is not None else {}
        made = platform.set_tenant(name, **{**kept, **_given(limits)})
        if as_json:
            print_json({"name": made.name, "key": made.key})
        else:
            out().print(f"{made.name}" + (f"  key {made.key}  (shown once)" if made.key else "  changed"))
        return
    rows: list[dict[str, object]] = [
        {
            "tenant": one.name, "rate": one.rate, "burst": one.burst, "quota": one.quota,
            "period s": one.quota_period_s, "weight": one.weight, "deployments": ", ".join(one.deployments) or "all",
            "tokens/min": one.tokens_per_minute, "tokens/day": one.tokens_per_day,
        }
        for one in known.values()
        if name in (None, one.name)
    ]  # fmt: skip
    if as_json:
        print_json(rows)
    elif rows:
        print_table([{key: "" if value is None else value for key, value in row.items()} for row in rows])
    else:
        out().print("no tenants: everybody on this machine may call")


def _given(limits: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in limits.items() if value is not None}
