"""How fast `r2m data check` goes over files, and where the time goes.

    python benchmarks/data_check.py ../shared/data/faces_ffhq ../shared/data/faces_photoshop

Copies the images under new names until there are enough, so that none is read from a cache of facts, and measures one
process and two, and as many threads (without the cache); then the parts: looking a file up, reading its bytes,
decoding it, hashing its pixels.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import typer
from PIL import Image

from r2m_jax.data.audit import audit, examine, scan
from r2m_jax.data.index import read_index
from r2m_jax.data.records import Record


def main(folders: list[Path], files: int = 6000, repetitions: int = 3) -> None:
    """Print images per second, and the time 100,000 images would take."""
    originals = [record for folder in folders for record in read_index(folder / "index.csv")]
    with tempfile.TemporaryDirectory() as name:
        records = []
        for number in range(files):
            original = originals[number % len(originals)]
            path = Path(name) / f"{number:06d}{Path(original.path).suffix}"
            shutil.copyfile(original.path, path)
            records.append(Record(str(path), original.label, original.family, video=str(number), split="train"))
        for workers in (1, 2):
            seconds = min(_timed(partial(scan, records, workers=workers)) for _ in range(repetitions))
            rate = files / seconds
            print(f"scan, {workers} processes: {rate:8.0f} images/s   100,000 in {1e5 / rate:5.0f} s")
        paths = [record.path for record in records]
        for workers in (1, 2):
            with ThreadPoolExecutor(workers) as pool:
                seconds = min(_timed(lambda: list(pool.map(examine, paths))) for _ in range(repetitions))
            rate = files / seconds
            print(f"scan, {workers} threads:   {rate:8.0f} images/s   100,000 in {1e5 / rate:5.0f} s")
        facts = scan(records, workers=2)
        seconds = _timed(lambda: audit(records, facts))
        print(f"findings and shortcut of {files} records: {seconds:.1f} s")
        cache = Path(name) / "facts.sqlite"
        scan(records, cache=cache, workers=2)
        seconds = _timed(lambda: scan(records, cache=cache))
        print(f"scan again, all in the cache: {files / seconds:8.0f} images/s")
        some = [record.path for record in records[:1000]]
        for part, work in _PARTS.items():
            seconds = min(_timed(partial(_each, work, some)) for _ in range(repetitions))
            print(f"  {part:<28}{seconds:7.3f} ms an image")


def _decode(path: str) -> None:
    with Image.open(path) as image:
        image.load()


def _hash(path: str) -> None:
    with Image.open(path) as image:
        hashlib.blake2b(image.convert("RGB").tobytes(), digest_size=12).hexdigest()


_PARTS: dict[str, Callable[[str], object]] = {
    "stat": os.stat,
    "read": lambda path: Path(path).read_bytes(),
    "read and decode": _decode,
    "read, decode and hash": _hash,
}


def _each(work: Callable[[str], object], paths: Sequence[str]) -> None:
    for path in paths:
        work(path)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
