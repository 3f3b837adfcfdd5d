"""The folder of a run that is under way: its recipe, log and states, beside the place its result will have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from r2m_jax.atomic import atomic_text
from r2m_jax.checkpoints import provenance
from r2m_jax.errors import InputError
from r2m_jax.parallel import is_first

_RECIPE = "recipe.json"


class RunFolder:
    """Made or found on entering; removed when the block ends without an exception.

    A folder without a saved state is worth nothing: it is started over whatever its recipe, and removed after an error.

    Args:
        target: where the result will be; the folder is named like it with ``.run`` at the end.
        recipe: of the run; a folder of a run with another one is refused.
        free: dotted keys that may differ.
        anew: start over instead of going on.

    Raises:
        InputError: the folder is of another run, or cannot be written.
    """

    def __init__(self, target: Path, recipe: BaseModel, *, free: tuple[str, ...], anew: bool):
        self.path = target.with_name(target.name + ".run")
        note, wanted = self.path / _RECIPE, _flat(recipe.model_dump(mode="json"), free)
        anew = anew or not self._has_states()
        if anew and is_first():
            shutil.rmtree(self.path, ignore_errors=True)
        if note.exists() and not anew:
            found = provenance.read_json(note)
            changed = [key for key in wanted | found if found.get(key) != wanted.get(key)]
            if changed:
                key = changed[0]
                raise InputError(
                    f"{self.path} is of a run with {key}={found.get(key)}, not {wanted.get(key)}; go on with the "
                    "recipe it was started with, or pass --overwrite to start anew."
                )
        elif is_first():
            atomic_text(note, json.dumps(wanted, indent=2) + "\n")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if is_first() and (kind is None or not self._has_states()):
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def states(self) -> Path:
        """Where saved states go."""
        return self.path / "states"

    def _has_states(self) -> bool:
        return self.states.is_dir() and any(self.states.iterdir())


def _flat(settings: dict[str, Any], free: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in settings.items():
        path = prefix + key
        if path in free:
            continue
        out |= _flat(value, free, f"{path}.") if isinstance(value, dict) else {path: value}
    return out
