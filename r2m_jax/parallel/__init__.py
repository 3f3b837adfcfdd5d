"""Meshes, shardings and processes; nothing here knows what a detector is."""

from r2m_jax.parallel.cores import available_cores, one_device_per_core, one_lapack_thread
from r2m_jax.parallel.mesh import batch_sharding, data_mesh, distribute, replicate, shard_batch, shardings
from r2m_jax.parallel.processes import any_process, connect, gather_rows, is_first, own_rows

__all__ = [
    "any_process",
    "available_cores",
    "batch_sharding",
    "connect",
    "data_mesh",
    "distribute",
    "gather_rows",
    "is_first",
    "one_device_per_core",
    "one_lapack_thread",
    "own_rows",
    "replicate",
    "shard_batch",
    "shardings",
]
