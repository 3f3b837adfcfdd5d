"""Fine-tuning detectors."""

from r2m_jax.training.fine_tuning import FineTuner, FineTuning
from r2m_jax.training.inputs import by_policy, feature_inputs, image_inputs, lesson_inputs, pair_inputs, unchanged
from r2m_jax.training.loop import Hook, Interrupted, Window, compiled, fit
from r2m_jax.training.objectives import Output, cross_entropy, supervised
from r2m_jax.training.optimizers import OptimizerRecipe, adam_coupled_l2, build_optimizer, warmup_cosine
from r2m_jax.training.pruned import keep_zeros
from r2m_jax.training.sam import Sharpness, sharpness_aware
from r2m_jax.training.step import Metrics, TrainState, init_state, train_step
from r2m_jax.training.trainable import everything, matching

__all__ = [
    "FineTuner",
    "FineTuning",
    "Hook",
    "Interrupted",
    "Metrics",
    "OptimizerRecipe",
    "Output",
    "Sharpness",
    "TrainState",
    "Window",
    "adam_coupled_l2",
    "build_optimizer",
    "compiled",
    "by_policy",
    "cross_entropy",
    "everything",
    "feature_inputs",
    "fit",
    "init_state",
    "keep_zeros",
    "lesson_inputs",
    "matching",
    "image_inputs",
    "pair_inputs",
    "sharpness_aware",
    "supervised",
    "train_step",
    "unchanged",
    "warmup_cosine",
]
