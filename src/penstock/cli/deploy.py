"""`penstock deploy NAME MODEL`: makes a model an endpoint, or gives an endpoint a new revision."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.platform import Address, AsJson, Name, Wait, connect, follow, pairs, read_option, settings, tell
from penstock.core.errors import InvalidInput

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def deploy(
    name: Name,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A model's path, archive, or `file.py:Name`; unset: the one it has."),
    ] = None,
    graph: Annotated[
        str | None, typer.Option("--graph", metavar="FILE", help="A graph's file, instead of a model.")
    ] = None,
    replicas: Annotated[
        str | None, typer.Option("--replicas", metavar="MIN..MAX", help="Bounds, such as 0..4, or a number.")
    ] = None,
    traffic: Annotated[
        str | None,
        typer.Option(
            "--traffic",
            metavar="POLICY",
            help="latest, split, canary, epsilon_greedy, softmax, thompson, ucb, linucb.",
        ),
    ] = None,
    traffic_option: Annotated[
        list[str] | None, typer.Option("--traffic-option", metavar="KEY=VALUE", help="An option of that policy.")
    ] = None,
    shadow: Annotated[
        float | None,
        typer.Option(
            "--shadow", metavar="SHARE", help="The new revision gets copies of so many requests, and serves none."
        ),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="STRATEGY", help="rolling, blue-green or recreate.")
    ] = None,
    scale_on: Annotated[
        str | None, typer.Option("--scale-on", metavar="POLICY", help="concurrency, rps, queue_wait or schedule.")
    ] = None,
    scale_option: Annotated[
        list[str] | None, typer.Option("--scale-option", metavar="KEY=VALUE", help="An option of that policy.")
    ] = None,
    cpu: Annotated[float | None, typer.Option("--cpu", metavar="CORES", help="Cores of a replica.")] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Memory of a replica, such as 2GiB.")
    ] = None,
    gpu: Annotated[
        float | None, typer.Option("--gpu", metavar="NUMBER", help="GPUs of a replica, or a share of one.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="KEY=VALUE", help="A variable of its environment; KEY- takes it out."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret", metavar="KEY=SOURCE", help="A variable read from env:NAME or file:/path at each start; KEY-."
        ),
    ] = None,
    requirements: Annotated[
        str | None,
        typer.Option("--requirements", metavar="FILE", help="Locked requirements of an environment of its own."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="A model option, such as workers=2; KEY-.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Allow the model's pickled files: they can run any code.")
    ] = False,
    wait: Wait = True,
    as_json: AsJson = False,
    fleet: Address = None,
) -> None:
    """Makes a deployment, or changes the one of that name; what is not given stays as it was.

    A change of what runs is a new revision: it gets traffic when it is ready, as the traffic policy says, and the one
    before serves on until then, or for good when the new one fails.
    """
    from penstock.cli.output import print_json

    given: dict[str, object] = {
        "graph": graph, "replicas": replicas, "cpu": cpu, "memory": memory, "gpu": gpu,
        "requirements": requirements,
        "rollout": {"strategy": strategy} if strategy else None,
        "traffic": _policy("--traffic", traffic, traffic_option),
        "scaling": _policy("--scale-on", scale_on, scale_option),
        "env": settings(env, "--env") or None,
        "secrets": settings(secret, "--secret") or None,
        "options": {
            key: None if value is None else read_option(value) for key, value in settings(option, "--option").items()
        } or None,
        "trust": trust or None,
    }  # fmt: skip
    changes = {key: value for key, value in given.items() if value is not None}
    platform = connect(fleet)
    change = platform.deploy(name, model, shadow=shadow, **changes)
    if as_json:
        print_json({"name": change.name, "generation": change.generation, "revision": change.revision})
    else:
        tell(change)
    if wait:
        follow(platform, name)


def _policy(flag: str, policy: str | None, options: list[str] | None) -> dict[str, object] | None:
    if policy is None:
        if options:
            raise InvalidInput(f"{options[0]}: an option of which policy? Write {flag} POLICY too")
        return None
    given = {key: read_option(value) for key, value in pairs(options, flag).items()}
    return {"policy": policy, "options": given} if given else {"policy": policy}
