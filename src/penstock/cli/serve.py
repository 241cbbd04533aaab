"""`penstock serve PATH…`: loads models and answers for them until it is told to stop."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.flags import with_options
from penstock.core.errors import InvalidInput
from penstock.runtime.options import ModelOptions, ServerOptions

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
@with_options(server=ServerOptions, model=ModelOptions)
def serve(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Model files, folders of numbered versions, archives of them (.tar.gz, .zip), or `file.py:Name`.",
        ),
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option("--trust", metavar="PATH", help="Allow the pickled files of this PATH: they can run any code."),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="Configuration file [default: ./penstock.toml].")
    ] = None,
    server: dict[str, object] | None = None,
    model: dict[str, object] | None = None,
) -> None:
    """Serves models over HTTP and gRPC until SIGTERM or Ctrl-C.

    Every option can also stand in the environment (--http-port is PENSTOCK_HTTP_PORT, --workers is
    PENSTOCK_MODEL_WORKERS) and in the file ([server], [defaults], [models.NAME]); flags win. Model options given
    as flags hold for every model. `penstock config` shows each effective value and where it came from.
    """
    import uvloop

    from penstock.cli.startup import announce
    from penstock.packaging.unpack import unpacked
    from penstock.runtime.assemble import Offers, Written, effective
    from penstock.runtime.server import run
    from penstock.runtime.workers import heap

    with unpacked(paths or ()) as folders:
        given, trusted = ([folders.get(path, path) for path in some or ()] for some in (paths, trust))
        written = Written(given, server or {}, model or {}, trusted)
        configuration = effective(written, config)
        if not configuration.models:
            raise InvalidInput(
                "there is nothing to serve: give a model file, a folder or file.py:Name, or a penstock.toml with "
                "[models.NAME] tables"
            )
        options = configuration.server.value
        offered = Offers(written, config, configuration)
        heap.share_one()
        uvloop.run(run(options, offered, on_ready=lambda status: announce(status, options)))
