#!/usr/bin/env bash
# One machine with several GPUs: JAX drives all of them from one process, so there is nothing to join.
#
#   ROOT=/data bash launch/gpu_box.sh                          # all GPUs
#   ROOT=/data CUDA_VISIBLE_DEVICES=0,1 bash launch/gpu_box.sh # two of them
#
# Ctrl-C or SIGTERM saves the training run's state; the same command goes on.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export ROOT=${ROOT:?a folder for data, models and results}
exec bash "$here/steps.sh"
