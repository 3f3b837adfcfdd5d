"""What each process of test_several_processes.py runs: TASKS.json PORT PROCESSES PROCESS."""

import json
import sys
from pathlib import Path

from r2m_jax import InputError, load_detector
from r2m_jax.checkpoints.sharded import save_sharded
from r2m_jax.jobs.evaluate import evaluate
from r2m_jax.jobs.merge import merge
from r2m_jax.jobs.train import train
from r2m_jax.parallel import data_mesh, distribute, joined
from r2m_jax.parallel.leaving import leave_now
from r2m_jax.progress import Reporter
from r2m_jax.recipes import TrainRecipe, load_recipe
from r2m_jax.recipes.evaluating import EvalRecipe
from r2m_jax.recipes.merging import MergeRecipe

KINDS = {
    "merge": (MergeRecipe, merge), "eval": (EvalRecipe, evaluate), "train": (TrainRecipe, train),
}  # fmt: skip


def main(file: Path, port: str, processes: int, process: int) -> int:
    given = json.loads(file.read_text())
    reporter = Reporter(quiet=True)
    try:
        with joined(f"127.0.0.1:{port}", processes, process, timeout=120):
            for command, settings in given["tasks"].values():
                recipe, job = KINDS[command]
                job(
                    load_recipe(recipe, command, "specialist" if command == "train" else None, [], settings),
                    reporter=reporter,
                )
            if given["store"]:
                params = load_detector(given["store"]).params
                save_sharded(file.with_name("store"), distribute(data_mesh(fsdp=4), params))
            merge(load_recipe(MergeRecipe, "merge", None, [], given["last"]), reporter=reporter)
    except InputError as error:
        print(type(error).__name__, error, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    leave_now(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
