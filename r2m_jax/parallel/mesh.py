"""One mesh with a ``data`` axis: batches are split over it, parameters copied to every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r2m_jax.errors import InputError

DATA = "data"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over the given devices, all of the process's by default."""
    devices = list(devices or jax.devices())
    # The default axis type became Explicit in jax 0.9, under which a model would have to annotate its products.
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Split the leading axis of every leaf over the mesh.

    Raises:
        InputError: the batch does not divide by the number of devices.
    """
    size = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if any(count % mesh.size for count in size):
        raise InputError(
            f"a batch of {max(size)} does not divide over {mesh.size} devices; choose a multiple of {mesh.size}."
        )
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(DATA)))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """A copy of every leaf on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
