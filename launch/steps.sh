#!/usr/bin/env bash
# What every process runs. A step whose result is there is skipped, so that the whole can be started again after a
# failure; a step that was stopped goes on where it was.
set -euo pipefail

ROOT=${ROOT:?the folder that all processes see}
BASE=${BASE:-$ROOT/models/base}
INDEX=${INDEX:-$ROOT/data/index.parquet}
OUT=${OUT:-$ROOT/runs}
# JAX's own variable: later starts read compiled programs instead of compiling them again.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$ROOT/cache/jax}

# A shell neither passes SIGTERM on (in a container it alone gets it) nor waits for a command that saves its state first.
pass_on() {
    local child code=0
    "$@" &
    child=$!
    trap 'kill -TERM $child 2>/dev/null || true' TERM INT
    wait $child || code=$?
    while kill -0 $child 2>/dev/null; do
        code=0
        wait $child || code=$?
    done
    return $code
}

for family in FS FR EFS; do
    [ -d "$OUT/$family" ] || pass_on r2m train specialist "name=$family" "data.index=$INDEX" \
        "data.families=[$family]" "model.base=$BASE" "out=$OUT/{name}" batch_size=256 model.dtype=bfloat16 \
        states.every=200
done

[ -d "$OUT/merged" ] || pass_on r2m merge --base "$BASE" --specialist "FS=$OUT/FS" --specialist "FR=$OUT/FR" \
    --specialist "EFS=$OUT/EFS" --method r2m --rank 0.7 --alpha 0.5 --out "$OUT/merged"

[ -d "$OUT/results" ] || pass_on r2m eval --model "FS=$OUT/FS" --model "FR=$OUT/FR" --model "EFS=$OUT/EFS" \
    --model "R2M=$OUT/merged" --data "$INDEX" --batch-size 1024 --out "$OUT/results"
