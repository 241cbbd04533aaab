"""`penstock up`: the platform on this machine, until it is told to stop."""

from __future__ import annotations

import json
import sys

import typer

from penstock.cli.command import Command
from penstock.cli.flags import with_options
from penstock.fleet.up.options import UpOptions

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
@with_options(platform=UpOptions)
def up(platform: dict[str, object] | None = None) -> None:
    """Runs the platform: a controller, routers on the public ports, and the replicas of every deployment.

    Deployments of an earlier run with the same state come back. Every option can also stand in the environment
    (--http-port is PENSTOCK_UP_HTTP_PORT); flags win. `penstock deploy` makes deployments, Ctrl-C or `penstock down`
    stops everything.
    """
    import uvloop

    from penstock import config
    from penstock.cli.output import out
    from penstock.fleet.up.options import read_options
    from penstock.fleet.up.supervisor import UpStatus, run

    options = read_options(platform or {}, config.environment())

    def announce(status: UpStatus) -> None:
        if options.log_format == "text" or (options.log_format == "auto" and sys.stdout.isatty()):
            out().print(
                f"[bold green]up[/]     {status.http_url}"
                + (f"  grpc {status.grpc_address}" if status.grpc_address else "")
                + (f"  admin {status.admin_url}" if status.admin_url else "")
                + f"  state {status.state}"
            )
            if options.state is None:
                out().print("[dim]try[/]    penstock deploy NAME MODEL")
        else:
            event = {
                "event": "up", "http": status.http_url, "grpc": status.grpc_address or "",
                "admin": status.admin_url or "", "state": str(status.state), "pid": status.pid,
            }  # fmt: skip
            print(json.dumps(event), flush=True)

    uvloop.run(run(options, announce))
