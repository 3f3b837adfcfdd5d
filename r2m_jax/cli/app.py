"""The commands of ``r2m``. Whatever is slow to import is imported inside the command that needs it."""

from __future__ import annotations

from typing import Annotated

import typer

from r2m_jax.cli import judging, making
from r2m_jax.cli.data.app import app as data
from r2m_jax.version import __version__

app = typer.Typer(
    name="r2m",
    help="Deepfake detectors that are merged, not retrained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback is a bug report; it should look like one
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"r2m-jax {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# In the order of `r2m --help`.
app.command()(making.demo)
app.command()(making.train)
app.command()(making.merge)
app.command()(judging.compare)
app.command()(judging.collapse)
app.command()(making.sweep)
app.command("eval")(judging.evaluate)
app.command()(judging.study)
app.command()(judging.predict)
app.command()(making.convert)
app.command()(making.export)
app.command()(making.compress)
app.command()(judging.info)
