"""Meshes, shardings and processes; nothing here knows what a detector is."""

from r2m_jax.parallel.cores import available_cores, one_device_per_core, one_lapack_thread
from r2m_jax.parallel.directories import common_directory
from r2m_jax.parallel.mesh import batch_sharding, data_mesh, distribute, replicate, shard_batch, shardings
from r2m_jax.parallel.processes import (
    any_process,
    check,
    connect,
    gather,
    gather_arrays,
    gather_rows,
    is_first,
    joined,
    meet,
    own_part,
    own_rows,
)

__all__ = [
    "any_process",
    "available_cores",
    "batch_sharding",
    "check",
    "common_directory",
    "connect",
    "data_mesh",
    "distribute",
    "gather",
    "gather_arrays",
    "gather_rows",
    "is_first",
    "joined",
    "meet",
    "one_device_per_core",
    "one_lapack_thread",
    "own_part",
    "own_rows",
    "replicate",
    "shard_batch",
    "shardings",
]
