"""Images/s of our pipeline and of a torch DataLoader with Pillow doing the same work, in alternating repetitions.

    python benchmarks/pipeline_throughput.py [--data ../shared/data/faces_ffhq] [--workers 2] [--repetitions 5]

The work: read and decode a JPEG file, shorter side to 224 (bicubic), centre crop, batches of 32, shuffled. Once on the
files as they are and once on 1024² JPEG files made of them. Per core: images per second of processor time, workers
included. Starting workers is not counted (the first batch is taken before the clock starts); what it takes is shown.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from r2m_jax.data.index import read_index
from r2m_jax.data.pipeline import Decoding, RecordSource, batches
from r2m_jax.data.records import Record

BATCH, SIZE = 32, 224


class Files(Dataset[tuple[torch.Tensor, int]]):
    """What a user of torch writes."""

    def __init__(self, records: list[Record]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.records[number].path) as file:
            image = file.convert("RGB")
        scale = SIZE / min(image.size)
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
        image = image.crop((left, top, left + SIZE, top + SIZE))
        return torch.from_numpy(np.array(image)), self.records[number].label


def processor_seconds() -> float:
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def measure(start: Callable[[], Iterator[Any]]) -> tuple[float, float, float]:
    """Images per second, images per second of processor time, and seconds until the first batch."""
    begin = time.perf_counter()
    iterator = start()
    next(iterator)
    started = wall = time.perf_counter()
    busy = processor_seconds()
    images = 0
    for batch in iterator:
        images += len(batch["label"] if isinstance(batch, dict) else batch[1])
        wall, spent = time.perf_counter(), processor_seconds() - busy  # before the workers end
    if hasattr(iterator, "close"):
        iterator.close()
    return images / (wall - started), images / spent, started - begin


def enlarged(records: list[Record], folder: Path) -> list[Record]:
    made = []
    for number, record in enumerate(records):
        path = folder / f"{number}.jpg"
        with Image.open(record.path) as image:
            image.resize((1024, 1024), Image.Resampling.BICUBIC).save(path, quality=92)
        made.append(Record(str(path), record.label))
    return made


def compare(name: str, records: list[Record], workers: int, repetitions: int, epochs: int) -> None:
    def ours(workers: int, processes: bool = False, exact: bool = True) -> Callable[[], Iterator[Any]]:
        decoding = Decoding(SIZE, workers, processes, exact=exact)
        return lambda: batches(RecordSource(records), batch_size=BATCH, seed=0, epochs=epochs, decoding=decoding)

    def theirs(workers: int) -> Callable[[], Iterator[Any]]:
        repeated = records * epochs
        loader = DataLoader(Files(repeated), BATCH, shuffle=True, num_workers=workers, drop_last=True)
        return lambda: iter(loader)

    contestants = {
        "torch DataLoader, 0 workers": theirs(0),
        "r2m_jax, 0 workers": ours(0),
        f"torch DataLoader, {workers} processes": theirs(workers),
        f"r2m_jax, {workers} threads": ours(workers),
        f"r2m_jax, {workers} processes": ours(workers, processes=True),
        f"r2m_jax, {workers} threads, exact=False": ours(workers, exact=False),
    }
    figures: dict[str, list[tuple[float, float, float]]] = {contestant: [] for contestant in contestants}
    for _ in range(repetitions):
        for contestant, start in contestants.items():
            figures[contestant].append(measure(start))
    print(f"{name}: {len(records)} images, {epochs} epochs, median of {repetitions} (lowest … highest)")
    for contestant, runs in figures.items():
        rates, per_core, begins = zip(*runs, strict=True)
        print(
            f"  {contestant:36} {statistics.median(rates):6.0f} images/s ({min(rates):.0f} … {max(rates):.0f})  "
            f"{statistics.median(per_core):6.0f} per core  first batch after {statistics.median(begins):.2f} s"
        )


def main(
    data: Path = Path("../shared/data/faces_ffhq"),
    workers: int = 2,
    repetitions: int = 5,
    images: int = 480,
    epochs: int = 2,
) -> None:
    torch.set_num_threads(1)
    records = read_index(data / "index.csv")[:images]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    compare("as stored", records, workers, repetitions, epochs)
    with tempfile.TemporaryDirectory() as folder:
        compare("1024²", enlarged(records[::3], Path(folder)), workers, repetitions, 1)


if __name__ == "__main__":
    typer.run(main)
