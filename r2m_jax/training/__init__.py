"""Fine-tuning detectors."""

from r2m_jax.training.loop import fit
from r2m_jax.training.objectives import cross_entropy
from r2m_jax.training.optimizers import adam_coupled_l2, warmup_cosine
from r2m_jax.training.step import TrainState, init_state, train_step

__all__ = [
    "TrainState",
    "adam_coupled_l2",
    "cross_entropy",
    "fit",
    "init_state",
    "train_step",
    "warmup_cosine",
]
