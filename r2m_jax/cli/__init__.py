"""The ``r2m`` command. Modules here are thin: they parse, call the library and print."""

from __future__ import annotations

import sys
import warnings

from r2m_jax.errors import InputError


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 2 the user's input is wrong (one sentence on stderr), 130 interrupted, 1 a bug.
    """
    from r2m_jax.cli.app import app

    warnings.showwarning = _one_line
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
