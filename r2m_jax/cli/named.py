"""``NAME=DIR`` options."""

from __future__ import annotations

from collections.abc import Sequence

from r2m_jax.errors import InputError


def named(entries: Sequence[str], option: str) -> dict[str, str]:
    """Directories by name.

    Raises:
        InputError: an entry is no ``NAME=DIR``, or a name comes twice.
    """
    out: dict[str, str] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise InputError(f"{option} {entry!r} is no NAME=DIR.")
        if name in out:
            raise InputError(f"{option} names {name!r} twice.")
        out[name] = path
    return out
