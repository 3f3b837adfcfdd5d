"""The log of a run: one JSON object a line, and TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from r2m_jax.atomic import atomic_text
from r2m_jax.errors import InputError

FILE = "log.jsonl"


class RunLog:
    """Appends to ``log.jsonl`` and ``tensorboard/`` in a folder.

    Rows hold ``kind`` (``step``, ``window``, ``validation``), ``step`` and numbers. Rows of a run that goes on from an
    earlier step are cut off first, so that the log of an interrupted run equals that of one that was not.

    Args:
        folder: exists.
        after: step the run goes on from; 0 for a new one.
    """

    def __init__(self, folder: Path, after: int):
        self._path = Path(folder) / FILE
        atomic_text(self._path, "".join(json.dumps(row) + "\n" for row in read_log(self._path) if row["step"] <= after))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=after + 1)

    def add(self, kind: str, step: int, **values: float) -> None:
        """One row; NaN is written as null, for JSON has none."""
        told = {name: None if math.isnan(value) else value for name, value in values.items()}
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **told}) + "\n")
        except OSError as error:
            raise self._unwritable(error) from None
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        """What was added is on disk when this returns.

        Raises:
            InputError: the disk is full, say.
        """
        try:
            self._file.flush()
            self._board.flush()
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()
        self._board.close()

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self._path} cannot be written ({error.strerror}); the states saved so far are whole.")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a log, without a last line that was cut short."""
    rows: list[dict[str, Any]] = []
    if not Path(path).exists():
        return rows
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
