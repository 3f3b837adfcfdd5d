"""Options that commands share; what is slow is imported when the command runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from r2m_jax.errors import InputError

Coordinator = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of process 0, to run as several processes.", rich_help_panel="Several processes"),
]
Processes = Annotated[int | None, typer.Option(help="How many there are.", min=1, rich_help_panel="Several processes")]
Process = Annotated[
    int | None, typer.Option(help="Which one this is, from 0.", min=0, rich_help_panel="Several processes")
]
MultiProcess = Annotated[
    str,
    typer.Option(
        help="auto: what the flags do not say is asked of a TPU pod, SLURM, Open MPI or Kubernetes; off: it is not.",
        rich_help_panel="Several processes",
    ),
]
JoinTimeout = Annotated[
    float, typer.Option(help="Seconds to wait for all processes.", min=0, rich_help_panel="Several processes")
]
Profile = Annotated[
    Path | None, typer.Option(help="Directory for a trace of some units in the middle, by JAX's profiler.")
]


@dataclass(frozen=True)
class Joining:
    """What the options say, as of :func:`r2m_jax.parallel.connect`."""

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    multi_process: str = "auto"
    join_timeout: float = 300.0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Be one of the processes while the block runs.

        Raises:
            InputError: the options do not fit, or processes are missing.
        """
        if self.multi_process not in ("auto", "off"):
            raise InputError(f"--multi-process {self.multi_process} is unknown; choose auto or off.")
        from r2m_jax.parallel import joined

        with joined(
            self.coordinator,
            self.processes,
            self.process,
            multi_process=cast(Literal["auto", "off"], self.multi_process),
            timeout=self.join_timeout,
            command=_command(sys.argv[1:]),
        ):
            yield


def _command(arguments: list[str]) -> str:
    """The command line without what differs between the processes of one computation."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--process" and not argument.startswith("--process="):
            kept.append(argument)
        skip = argument == "--process"
    return " ".join(kept)
