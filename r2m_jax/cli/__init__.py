"""The ``r2m`` command. Modules here are thin: they parse, call the library and print."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import NoReturn

from r2m_jax.errors import InputError, Stuck


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 2 the user's input is wrong (one sentence on stderr), 75 another process of the computation is
    gone, 130 interrupted, 1 a bug.
    """
    from r2m_jax.cli.app import app

    warnings.showwarning = _one_line
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, Stuck):
            sys.stderr.flush()
            os._exit(2)
        _end(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _end(130)
    except SystemExit as ended:
        _end(ended.code)
    except Exception as error:
        if "r2m_jax.parallel.leaving" not in sys.modules:  # no process is part of a computation
            raise
        from r2m_jax.parallel.leaving import LOST, ProcessLost

        if isinstance(error, ProcessLost):
            print(f"error: {error}", file=sys.stderr)
            _end(LOST)
        traceback.print_exc()
        _end(1)


def _end(code: str | int | None) -> NoReturn:
    """Exit; from within a computation of several processes at once, since the others may never leave it in order."""
    if isinstance(code, int) and "r2m_jax.parallel.leaving" in sys.modules:
        from r2m_jax.parallel.leaving import leave_now

        leave_now(code)
    sys.exit(code)


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
