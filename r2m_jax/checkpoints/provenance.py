"""What made a result: inputs by hash, resolved recipe, seed, versions. Stored as ``r2m.json``."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from r2m_jax.errors import InputError
from r2m_jax.version import __version__

FILE = "r2m.json"
FORMAT = 1
_PACKAGES = ("jax", "flax", "optax", "numpy", "transformers", "safetensors", "grain")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_hashes(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """``{"path", "bytes", "sha256"}`` of every file, in the order given."""
    return [{"path": str(p), "bytes": p.stat().st_size, "sha256": sha256(p)} for p in map(Path, paths)]


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the packages whose numerics enter a result."""
    found = {"r2m-jax": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in _PACKAGES}


def record(
    kind: str,
    *,
    inputs: Sequence[Mapping[str, Any]] = (),
    recipe: Mapping[str, Any] | None = None,
    seed: int | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """A provenance record.

    Args:
        kind: what the directory holds: ``converted``, ``base``, ``specialist``, ``all_in_one``, ``merged`` ….
        inputs: of :func:`input_hashes`.
        recipe: the resolved settings, JSON values only.
        seed: the run's seed, if anything was random.
        extra: further JSON values, e.g. ``head="zero"``.
    """
    return {
        "format": FORMAT,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "inputs": [dict(item) for item in inputs],
        "recipe": dict(recipe or {}),
        "seed": seed,
        **extra,
    }


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        InputError: it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}).") from None
