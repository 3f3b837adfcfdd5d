#!/usr/bin/env bash
# A Cloud TPU pod slice, from your own machine: the same program on every worker.
#
#   ROOT=/mnt/share TPU=my-slice ZONE=us-east5-b bash launch/tpu_pod.sh
#
# The workers need r2m-jax with JAX for TPU (`pip install 'jax[tpu]' r2m-jax`), this folder at $ROOT/launch, and $ROOT on
# all of them (Filestore over NFS).
set -uo pipefail

TPU=${TPU:?the name of the slice}
ZONE=${ZONE:?its zone}
ROOT=${ROOT:?the folder that all workers see}
ATTEMPTS=${ATTEMPTS:-5}

for attempt in $(seq "$ATTEMPTS"); do
    gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
        --command="ROOT='$ROOT' bash '$ROOT/launch/steps.sh'"
    code=$?
    # 0 all is done, 2 the input is wrong, 1 a bug; anything else is a lost worker or connection.
    case $code in 0 | 1 | 2) exit "$code" ;; esac
    echo "attempt $attempt ended with $code; what is left of the last one is given a minute to end" >&2
    sleep "${PAUSE:-60}"
done
exit "$code"
