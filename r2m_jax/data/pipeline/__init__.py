"""Batches of images: from memory, from files, from prepared data sets."""

from r2m_jax.data.pipeline.arrays import FeatureBatches
from r2m_jax.data.pipeline.in_memory import Batch, training_batches
from r2m_jax.data.pipeline.loader import (
    BatchIterator,
    Decoding,
    IndexedBatch,
    Preparation,
    batches,
    decode_all,
    evaluation_batches,
    read_ahead,
)
from r2m_jax.data.pipeline.sampling import Sampling
from r2m_jax.data.pipeline.sources import RecordSource, Source

__all__ = [
    "Batch", "training_batches", "FeatureBatches",
    "IndexedBatch", "BatchIterator", "Decoding", "Preparation", "batches", "decode_all", "evaluation_batches",
    "read_ahead", "Sampling", "Source", "RecordSource",
]  # fmt: skip
