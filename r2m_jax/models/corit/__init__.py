"""CoRIT, the Contrastive Regional Injection Transformer (Liu et al., arXiv 2603.24057)."""

from r2m_jax.models.corit.detector import CoritDetector
from r2m_jax.models.corit.forward import CoritOutput, apply_corit, corit_features, corit_outputs, corit_reading
from r2m_jax.models.corit.head import apply_corit_head, corit_parameter_shapes, init_corit_head
from r2m_jax.models.corit.refinement import Refined, gradient_proxy, pool, refine
from r2m_jax.models.corit.regions import partition, random_partition, regions_of, salient
from r2m_jax.models.corit.settings import AREAS, CoritSettings

__all__ = [
    "AREAS",
    "CoritDetector",
    "CoritOutput",
    "CoritSettings",
    "Refined",
    "apply_corit",
    "apply_corit_head",
    "corit_features",
    "corit_outputs",
    "corit_parameter_shapes",
    "corit_reading",
    "gradient_proxy",
    "init_corit_head",
    "partition",
    "pool",
    "random_partition",
    "refine",
    "regions_of",
    "salient",
]
