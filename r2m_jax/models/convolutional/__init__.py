"""Convolutional detectors: the VGG and the students of arXiv 2504.21066, and any other that a plan describes."""

from r2m_jax.models.convolutional.detector import ConvolutionalDetector, apply_convolutional
from r2m_jax.models.convolutional.forward import (
    ConvolutionalOutput,
    apply_backbone,
    convolutional_shapes,
    init_convolutional,
    learning_layers,
    trained_parameters,
)
from r2m_jax.models.convolutional.plan import PLANS, Adapter, Block, Plan, parse_plan, plan_name, plan_named

__all__ = [
    "PLANS",
    "Adapter",
    "Block",
    "ConvolutionalDetector",
    "ConvolutionalOutput",
    "Plan",
    "apply_backbone",
    "apply_convolutional",
    "convolutional_shapes",
    "init_convolutional",
    "learning_layers",
    "parse_plan",
    "plan_name",
    "plan_named",
    "trained_parameters",
]
