"""Time, memory and error of `r2m merge` beside torch, NumPy, mergekit and plain reading and writing.

    python benchmarks/merge.py --tower ViT-L/14 --work /tmp/merge-bench --run ours --run torch-svd --run io
    python benchmarks/merge.py --tower ViT-L/14 --layers 2 --gap           # errors at four ranks, in 2 layers
    python benchmarks/merge.py --run mergekit --mergekit-python /tmp/mk/bin/python
    python benchmarks/merge.py scaling --tower ViT-L/14 --method r2m        # over N, layers, width, devices

Every contestant is a fresh process, one after another. Wall and CPU time include starting, importing, compiling,
reading and writing. Memory is sampled every 50 ms over the process and its descendants: "anonymous" leaves out mapped
files, "resident" counts them. Inputs are in the page cache unless --cold drops them before every run; nothing waits for
the disk after writing. mergekit trims TIES per tensor, ours over the whole model: the same settings, not the same
result. mergekit 0.1.5 needs an environment of its own: pip install torch==2.13.0 mergekit==0.1.5. The models and the
contestants are in merge_peers.py. Nothing is asserted.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

PEERS = Path(__file__).with_name("merge_peers.py")
ROOT = PEERS.parent.parent
NAMES = "ABCDEFGH"
ALPHA, DENSITY, RANK = 0.5, 0.2, 0.7
LINEAR = ("weight_averaging", "task_arithmetic")
METHODS = (*LINEAR, "ties", "cart", "r2m")
GAP_RANKS = (0.1, 0.3, 0.5, 0.7)
LIBRARIES = ("OMP", "MKL", "OPENBLAS")
PLAIN = ("torch-svd", "torch-gram", "numpy")

console = Console(width=None if sys.stdout.isatty() else 150)
Row = dict[str, Any]


class Memory(threading.Thread):
    """Largest resident and anonymous memory of a process and its descendants, sampled from /proc."""

    def __init__(self, pid: int, interval: float = 0.05):
        super().__init__(daemon=True)
        self.pid, self.interval = pid, interval
        self.resident = self.anonymous = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Until ``ended``."""
        while not self.ended.wait(self.interval):
            self.sample()

    def sample(self) -> int:
        """Anonymous memory now."""
        fields = [read_status(pid) for pid in family(self.pid)]
        anonymous = sum(each.get("RssAnon", 0) for each in fields)
        self.anonymous = max(self.anonymous, anonymous)
        high = max((each.get("VmHWM", 0) for each in fields), default=0)  # what a sample between two would have seen
        self.resident = max(self.resident, high, sum(each.get("VmRSS", 0) for each in fields))
        return anonymous


def read_status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return {}
    pairs = (line.split() for line in lines if line.startswith(("VmRSS", "VmHWM", "RssAnon")))
    return {key.rstrip(":"): int(size) * 1024 for key, size, *_ in pairs}


def family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:  # grows while it is read
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, path.read_text().split())
            except OSError:
                continue
    return found


def measured(command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> Row:
    """Run a command to its end; wall and CPU seconds, peak memory in bytes, and its last line if it failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | dict(environment or {}),
        )
        memory = Memory(process.pid)
        memory.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    memory.ended.set()
    memory.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    row: Row = {"wall": wall, "cpu": cpu, "resident": memory.resident, "anonymous": memory.anonymous}
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        row["failed"] = f"exit {process.returncode}: {lines[-1] if lines else ''}"[:200]
    return row


def coefficient(method: str, count: int) -> float:
    """What a linear method multiplies the sum of the task vectors by."""
    return 1 / count if method == "weight_averaging" else ALPHA


def peers(*arguments: str | Path | float) -> None:
    subprocess.run([sys.executable, PEERS, *map(str, arguments)], check=True, cwd=ROOT)


def prepared(work: Path, tower: str, layers: int | None, width: int | None, count: int, seed: int, plain: bool) -> Path:
    parts = [tower.replace("/", ""), f"L{layers}" if layers else "", f"d{width}" if width else "", f"N{count}"]
    folder = work / "-".join([*filter(None, parts), f"s{seed}"])
    sizes = [*(("--layers", layers) if layers else ()), *(("--width", width) if width else ())]
    more = ["--unprefixed"] if plain else []
    peers("prepare", folder, "--tower", tower, *sizes, "--specialists", count, "--seed", seed, *more)
    return folder


# Contestants: a command, an environment


def ours(folder: Path, out: Path, count: int, method: str, rank: float) -> list[str | Path]:
    of_method: dict[str, list[str | float]] = {
        "weight_averaging": [],
        "task_arithmetic": ["--alpha", ALPHA, "--reduce", "sum"],
        "ties": ["--density", DENSITY, "--scale", 1.0],
        "cart": ["--rank", rank, "--scale", 1.0],
        "r2m": ["--rank", rank, "--alpha", ALPHA, "--centering", "centered", "--origin", "theta0", "--eta", "eff"],
    }
    models = [part for name in NAMES[:count] for part in ("--specialist", f"{name}={folder / name}")]
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "r2m_jax",
        "merge",
        "--base",
        folder / "base",
        *models,
        "--method",
        method,
    ]
    return [*command, *map(str, of_method[method]), "--out", out, "--overwrite"]


def mergekit(python: Path, folder: Path, out: Path, count: int, method: str) -> list[str | Path]:
    plain = folder / "unprefixed"
    each: dict[str, float] = {"weight": ALPHA if method == "task_arithmetic" else 1.0}
    if method == "ties":
        each["density"] = DENSITY
    config: dict[str, Any] = {
        "merge_method": "linear" if method == "weight_averaging" else method,
        "models": [{"model": str(plain / name), "parameters": each} for name in NAMES[:count]],
        "parameters": {"normalize": method != "task_arithmetic"},
        "dtype": "float32",
    }
    if method != "weight_averaging":
        config["base_model"] = str(plain / "base")
    path = folder / f"mergekit-{method}.yaml"
    path.write_text(json.dumps(config, indent=2))  # JSON is YAML
    return [python.with_name("mergekit-yaml"), path, out, "--no-copy-tokenizer", "--quiet"]


def one_run(
    name: str,
    method: str,
    folder: Path,
    count: int,
    *,
    rank: float = RANK,
    threads: int = 1,
    sample_layers: int | None = None,
    python: Path | None = None,
    cold: bool = False,
    with_gap: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Row:
    """One contestant once, with the error of its result where there is a reference."""
    out, log, result = folder / "out", folder / "logs" / f"{name}-{method}.txt", folder / "result.json"
    shutil.rmtree(out, ignore_errors=True)
    result.unlink(missing_ok=True)
    more = dict(environment or {})
    command: list[str | Path]
    if name == "ours":
        command = ours(folder, out, count, method, rank)
    elif name == "mergekit":
        assert python is not None
        command, more = mergekit(python, folder, out, count, method), {"HF_HUB_OFFLINE": "1"}
    elif name == "io":
        command = [sys.executable, PEERS, "io", folder, out, "--specialists", str(count)]
    else:
        command = [sys.executable, PEERS, "plain", name, folder, out, "--specialists", str(count), "--rank", str(rank)]
        command += ["--result", result, *(["--sample-layers", str(sample_layers)] if sample_layers else [])]
        if threads:
            more |= {f"{library}_NUM_THREADS": str(threads) for library in LIBRARIES}
    if cold:
        for path in folder.rglob("*.safetensors"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    row: Row = {"contestant": name, "method": method, "rank": rank, "specialists": count} | measured(command, log, more)
    if name in PLAIN:
        row["threads"] = threads
        row |= json.loads(result.read_text()) if result.exists() else {}
    if "failed" not in row and not list(out.glob("*.safetensors")):
        row["failed"] = "exit 0, but no weights were written"
    exact = name != "io" and not row.get("extra_wall") and "failed" not in row
    if with_gap and exact and (method in LINEAR or method == "r2m"):
        which = ("--rank", rank) if method == "r2m" else ("--coefficient", coefficient(method, count))
        peers("gap", folder, out, "--specialists", count, *which, "--result", result)
        row |= json.loads(result.read_text())
    shutil.rmtree(out, ignore_errors=True)
    return row


# Tables


def merged_rows(rows: Sequence[Row]) -> list[Row]:
    """Repetitions as one row: medians of times, the largest memory."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row.get(field) for field in ("contestant", "method", "rank", "threads", "case"))
        groups.setdefault(key, []).append(row)
    out = []
    for group in groups.values():
        good = [row for row in group if "failed" not in row]
        row = dict((good or group)[-1])
        row["failures"] = f"{len(group) - len(good)} of {len(group)}" if len(good) < len(group) else ""
        for field in ("wall", "cpu"):
            row[field] = statistics.median(each[field] for each in good or group)
        for field in ("resident", "anonymous"):
            row[field] = max(each[field] for each in good or group)
        out.append(row)
    return out


def label(row: Row) -> str:
    if "threads" not in row:
        return str(row["contestant"])
    threads = row["threads"] or "default"
    return f"{row['contestant']}, {threads} thread{'s' if threads != 1 else ''}"


def show(title: str, rows: Sequence[Row]) -> None:
    table = Table(title=title, title_justify="left")
    for name in (
        "contestant",
        "method",
        "wall s",
        "CPU s",
        "resident GB",
        "anonymous GB",
        "wall / io",
        "gap",
        "rounding",
    ):
        table.add_column(name, justify="left" if name in ("contestant", "method") else "right")
    floor = next((row["wall"] for row in rows if row["contestant"] == "io" and "failed" not in row), None)
    extrapolated = False
    for row in rows:
        name = f"{label(row)}; {row['case']}" if "case" in row else label(row)
        method = f"r2m, r = {row['rank']}" if row["method"] == "r2m" else row["method"]
        if row.get("failures") and "failed" not in row:
            name += f" ({row['failures']} runs failed)"
        if "failed" in row:
            table.add_row(name, method, row["failed"])
            continue
        more = row.get("extra_wall", 0.0)
        extrapolated = extrapolated or more > 0
        wall, cpu = row["wall"] + more, row["cpu"] + row.get("extra_cpu", 0.0)
        sizes = [f"{row[field] / 1e9:.2f}" for field in ("resident", "anonymous")]
        times = [f"{'≈ ' if more else ''}{seconds:.1f}" for seconds in (wall, cpu)]
        gaps = [f"{row[field]:.1e}" if field in row else "" for field in ("gap", "rounding")]
        table.add_row(name, method, *times, *sizes, f"{wall / floor:.2f}" if floor else "", *gaps)
    console.print(table)
    if extrapolated:
        console.print("≈: some layers were truncated; their time is extrapolated to all, no result was checked.")


def show_gaps(rows: Sequence[Row]) -> None:
    ranks = sorted({row["rank"] for row in rows})
    table = Table(title="R²M: relative error of θ* - θ₀ against float64 (in the worst leaf)", title_justify="left")
    for name in ("contestant", *(f"r = {rank}" for rank in ranks)):
        table.add_column(name)
    for name in dict.fromkeys(label(row) for row in rows):
        cells = {row["rank"]: f"{row['gap']:.1e} ({row['worst']:.1e})" for row in rows if label(row) == name}
        table.add_row(name, *(cells.get(rank, "") for rank in ranks))
    bounds = {row["rank"]: f"{row['rounding']:.1e}" for row in rows}
    table.add_row("rounding the exact θ* to float32", *(bounds[rank] for rank in ranks))
    console.print(table)


def machine() -> dict[str, Any]:
    cpu = next((line.split(":")[1].strip() for line in lines_of("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next((int(line.split()[1]) * 1024 for line in lines_of("/proc/meminfo") if "MemTotal" in line), 0)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory": memory,
        "load": os.getloadavg(),
        "system": platform.platform(),
    }


def lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def versions(python: Path | None) -> dict[str, str]:
    names = ("r2m-jax", "jax", "jaxlib", "numpy", "scipy", "torch", "transformers", "safetensors")
    found = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
    if python:
        ask = "from importlib.metadata import version as v; print(v('mergekit'), 'with torch', v('torch'))"
        found["mergekit"] = subprocess.run(
            [python, "-c", ask], capture_output=True, text=True, check=True
        ).stdout.strip()
    return found


# Command line


def cases(vary: Sequence[str], base: Mapping[str, int | None]) -> list[dict[str, int | None]]:
    """One setting after another changed, the others as they are."""
    out = []
    for entry in vary:
        name, _, values = entry.partition("=")
        if name not in base or not values:
            raise typer.BadParameter(f"--vary {entry}: give specialists, layers, width or devices as NAME=1,2")
        out += [{**base, name: int(value)} for value in values.split(",")]
    return [case for number, case in enumerate(out) if case not in out[:number]]


def main(
    mode: Annotated[Literal["compare", "prepare", "scaling"], typer.Argument()] = "compare",
    tower: Annotated[str, typer.Option(help="tiny, ViT-B/16, ViT-L/14.")] = "tiny",
    layers: Annotated[int | None, typer.Option(help="Of the tower; its own without.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the tower; its own without.")] = None,
    specialists: int = 3,
    seed: int = 0,
    work: Path = Path("/tmp/merge-bench"),
    run: Annotated[list[str] | None, typer.Option(help=f"io, ours, mergekit, {', '.join(PLAIN)}; may repeat.")] = None,
    method: Annotated[list[str] | None, typer.Option(help=f"{', '.join(METHODS)}; may repeat, all without.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Of torch and NumPy; 0: their default. May repeat.")] = None,
    sample_layers: Annotated[int | None, typer.Option(help="torch, numpy: truncate so many, extrapolate.")] = None,
    gap: Annotated[bool, typer.Option("--gap", help="Compare results with a float64 reference.")] = False,
    rank: Annotated[list[float] | None, typer.Option(help="Of --gap; .1, .3, .5 and .7 without.")] = None,
    mergekit_python: Annotated[Path | None, typer.Option(help="Of the environment that has mergekit.")] = None,
    repeat: Annotated[int, typer.Option(help="Contestants alternate; the median counts.")] = 1,
    cold: Annotated[bool, typer.Option("--cold", help="Drop the inputs from the page cache before every run.")] = False,
    vary: Annotated[list[str] | None, typer.Option(help="scaling: NAME=VALUE,VALUE; may repeat.")] = None,
    out: Path = Path("/tmp/merge-bench/results.json"),
) -> None:
    """Compare contestants (which prepares the models), or one of the other modes; tables and a JSON file."""
    content: Row = {
        "mode": mode,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:],
        "versions": versions(mergekit_python),
        "machine": machine(),
    }
    work, plain = work.resolve(), mergekit_python is not None  # the contestants run elsewhere
    mergekit_python = mergekit_python.absolute() if mergekit_python else None  # a link into its environment stays one
    if mode == "prepare":
        print(prepared(work, tower, layers, width, specialists, seed, plain))
        return
    if mode == "scaling":
        content["rows"] = scaling(work, tower, layers, width, specialists, seed, method or ["r2m"], vary, repeat, cold)
        show(f"Scaling of ours, {tower}", merged_rows(content["rows"]))
    else:
        folder = prepared(work, tower, layers, width, specialists, seed, plain)
        content["models"] = json.loads((folder / "models.json").read_text())
        chosen = run or ["io", "ours", *PLAIN, *(["mergekit"] if mergekit_python else [])]
        ranks = list(rank or GAP_RANKS) if gap else [RANK]
        if gap:
            peers("reference", folder, "--specialists", specialists, *(part for r in ranks for part in ("--rank", r)))
        plan: list[Callable[[], Row]] = []
        for name in chosen:
            if name not in ("io", "ours", "mergekit", *PLAIN) or (name == "mergekit" and not mergekit_python):
                raise typer.BadParameter(f"--run {name}: unknown, or mergekit without --mergekit-python")
            able = {"io": [""], "ours": METHODS, "mergekit": METHODS[:3]}.get(name, ["r2m"])
            for each in [m for m in able if name == "io" or m in (method or METHODS)]:
                for count in (threads or [1]) if name in PLAIN else [1]:
                    for r in ranks if each == "r2m" else [RANK]:
                        settings: dict[str, Any] = {"rank": r, "threads": count, "cold": cold, "with_gap": gap}
                        settings |= {"python": mergekit_python, "sample_layers": sample_layers}
                        plan.append(partial(one_run, name, each, folder, specialists, **settings))
        content["rows"] = [once() for _ in range(repeat) for once in plan]
        rows = merged_rows(content["rows"])
        million = content["models"]["parameters"] / 1e6
        show(f"{tower}, {million:.1f} M parameters, {specialists} specialists", rows)
        if gap:
            show_gaps([row for row in rows if row["method"] == "r2m" and "gap" in row])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2) + "\n")
    console.print(f"written {out}")


def scaling(
    work: Path,
    tower: str,
    layers: int | None,
    width: int | None,
    specialists: int,
    seed: int,
    methods: Sequence[str],
    vary: Sequence[str] | None,
    repeat: int,
    cold: bool,
) -> list[Row]:
    """Ours, with one of four things changed at a time."""
    vary = vary or ["specialists=2,3,6", "layers=6,12", "width=768,1024", "devices=1,2"]
    chosen = cases(vary, {"specialists": specialists, "layers": layers, "width": width, "devices": 1})
    rows = []
    for case in chosen * repeat:
        count, devices = case["specialists"] or specialists, case["devices"] or 1
        most = max(each["specialists"] or specialists for each in chosen)  # fewer specialists are the first of these
        folder = prepared(work, tower, case["layers"], case["width"], most, seed, plain=False)
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
        for method in methods:
            row = one_run("ours", method, folder, count, cold=cold, environment={"XLA_FLAGS": flags})
            rows.append(row | case | {"case": ", ".join(f"{name} {value or 'own'}" for name, value in case.items())})
    return rows


if __name__ == "__main__":
    typer.run(main)
