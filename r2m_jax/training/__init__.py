"""Fine-tuning detectors."""

from r2m_jax.training.loop import fit
from r2m_jax.training.objectives import cross_entropy
from r2m_jax.training.optimizers import OptimizerRecipe, adam_coupled_l2, build_optimizer, warmup_cosine
from r2m_jax.training.sam import Sharpness, sharpness_aware
from r2m_jax.training.step import TrainState, init_state, train_step
from r2m_jax.training.trainable import everything, matching

__all__ = [
    "OptimizerRecipe",
    "Sharpness",
    "TrainState",
    "adam_coupled_l2",
    "build_optimizer",
    "cross_entropy",
    "everything",
    "fit",
    "init_state",
    "matching",
    "sharpness_aware",
    "train_step",
    "warmup_cosine",
]
