"""One mesh: batches are split over all of it, parameters over its ``fsdp`` axis or copied to every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r2m_jax.errors import InputError

DATA, FSDP = "data", "fsdp"
_SMALL = 2**14  # parameters below so many numbers are copied: gathering them costs more than keeping them


def data_mesh(devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1) -> Mesh:
    """A mesh of ``data`` by ``fsdp`` over the given devices, those of all processes by default.

    Args:
        devices: to compute on.
        fsdp: devices over which each parameter is split; 1 keeps a copy on every device (plain data parallelism).

    Raises:
        InputError: the devices cannot be divided so.
    """
    devices = list(devices or jax.devices())
    if fsdp < 1 or len(devices) % fsdp:
        raise InputError(f"{len(devices)} devices do not divide into groups of {fsdp} for fsdp; choose a divisor.")
    # The default axis type became Explicit in jax 0.9, under which a model would have to annotate its products.
    auto = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((len(devices) // fsdp, fsdp), (DATA, FSDP), axis_types=auto, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Split the leading axis of every leaf over the mesh.

    Args:
        mesh: devices, of several processes perhaps.
        batch: this process's rows; rows of the whole batch are those of all processes in turn.

    Raises:
        InputError: the batch does not divide by the number of devices.
    """
    sharding = batch_sharding(mesh)
    local = len(sharding.addressable_devices)
    size = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if any(count % local for count in size):
        raise InputError(f"a batch of {max(size)} does not divide over {local} devices; choose a multiple of {local}.")
    if mesh.is_multi_process:
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)
    return jax.device_put(batch, sharding)


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Where every leaf lives: large ones split over ``fsdp``, others on every device.

    The split axis is the longest that divides, the last of equals; the first axis of three and more is that of the
    stacked layers, which a scan walks through, and is left whole. Being a function of the shape alone, it serves
    parameters, gradients and the optimiser's moments alike.

    Args:
        mesh: of :func:`data_mesh`.
        tree: arrays or shapes.
    """
    groups = mesh.shape[FSDP]

    def place(leaf: Any) -> NamedSharding:
        shape = leaf.shape
        axes = [axis for axis in range(len(shape)) if shape[axis] % groups == 0 and (axis or len(shape) < 3)]
        if groups == 1 or not axes or np.prod(shape) < _SMALL:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: (shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*(FSDP if axis == longest else None for axis in range(len(shape)))))

    return jax.tree.map(place, tree)


def distribute(mesh: Mesh, tree: Any) -> Any:
    """Every leaf where :func:`shardings` puts it; all processes must hold equal values."""
    return jax.tree.map(_put, tree, shardings(mesh, tree))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """A copy of every leaf on every device; of sharded arrays too, which are gathered."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if mesh.is_multi_process:
        return jax.jit(lambda leaves: leaves, out_shardings=everywhere)(tree)
    return jax.device_put(tree, everywhere)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if not sharding.mesh.is_multi_process:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
