"""Preparing a data set: its folder appears whole or not at all."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from r2m_jax.atomic import atomic_directory
from r2m_jax.data.index import read_index
from r2m_jax.data.records import Record
from r2m_jax.data.tfds.builders import BUILDERS, Generic
from r2m_jax.data.tfds.core import RecordsBuilder
from r2m_jax.errors import InputError


def prepare(
    records: Sequence[Record] | str | Path,
    data_dir: str | Path,
    name: str = "generic",
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Path:
    """Write records as ``data_dir/name/1.0.0``, one array_record data set with their splits.

    Args:
        records: the records, or the index that lists them.
        data_dir: where tensorflow-datasets keeps data sets.
        name: of the data set: small letters, digits and underscores.
        overwrite: replace a data set of that name.
        on_progress: called with 1 for every image written.

    Returns:
        The folder of the data set, for :class:`~r2m_jax.data.tfds.source.TfdsSource` and
        ``tfds.builder_from_directory``.

    Raises:
        InputError: the name will not do or is taken, there is no record, or an image cannot be read; nothing is
            written.
    """
    if isinstance(records, str | Path):
        records = read_index(records)
    if not records:
        raise InputError("there is no image to prepare.")
    return _write(Generic, data_dir, name, overwrite, {"records": records, "on_progress": on_progress})


def prepare_source(
    source: str | Path,
    data_dir: str | Path,
    name: str,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Path:
    """Write a data set in its published layout as ``data_dir/name/1.0.0``.

    Args:
        source: its folder or list.
        data_dir: where tensorflow-datasets keeps data sets.
        name: which data set, one of :data:`~r2m_jax.data.tfds.builders.BUILDERS` but ``generic``.
        overwrite: replace a data set of that name.
        on_progress: called with 1 for every image written.
        **options: of :func:`r2m_jax.data.readers.read_source`, over the builder's own.

    Returns:
        The folder of the data set.

    Raises:
        InputError: the name is unknown or taken, or the source cannot be read; nothing is written.
    """
    if not BUILDERS.get(name, Generic).OPTIONS:
        known = ", ".join(other for other, builder in BUILDERS.items() if builder.OPTIONS)
        raise InputError(f"there is no builder {name!r}; choose one of {known}, or prepare an index.")
    arguments = {"source": source, "options": options, "on_progress": on_progress}
    return _write(BUILDERS[name], data_dir, name, overwrite, arguments)


def _write(
    builder: type[RecordsBuilder], data_dir: str | Path, name: str, overwrite: bool, arguments: Mapping[str, Any]
) -> Path:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"the name {name!r} does not do; use small letters, digits and underscores, a letter first.")
    target = Path(data_dir) / name
    named = builder if name == builder.name else type(name, (builder,), {"name": name}, skip_registration=True)
    with atomic_directory(target, overwrite) as aside, _quiet():
        named(data_dir=aside, **arguments).download_and_prepare()
        for version in (aside / name).iterdir():
            version.rename(aside / version.name)
        (aside / name).rmdir()
    return target / str(builder.VERSION)


@contextmanager
def _quiet() -> Iterator[None]:
    """Progress is told through ``on_progress``; what tensorflow-datasets prints stays away meanwhile."""
    bars = tfds.core.utils.tqdm_utils
    shown = bars._active
    bars.display_progress_bar(False)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        bars.display_progress_bar(shown)
