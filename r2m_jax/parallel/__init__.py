"""Meshes and shardings; nothing here knows what a detector is."""

from r2m_jax.parallel.mesh import data_mesh, replicate, shard_batch

__all__ = ["data_mesh", "replicate", "shard_batch"]
