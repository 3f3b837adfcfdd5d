"""What compression and transfer cost a convolutional detector; a study is a file here and a line below.

Karathanasis et al., arXiv 2504.21066.
"""

from r2m_jax.studies.compression.bench import Workbench
from r2m_jax.studies.compression.placing import placing
from r2m_jax.studies.compression.techniques import techniques
from r2m_jax.studies.result import Study

_PAPER = "Karathanasis et al. (arXiv 2504.21066)"
_EVERY = (
    Study("compression-techniques", "Compression and transfer", f"{_PAPER}, §IV in small", techniques),
    Study("compression-adapters", "Where the adapter goes", f"{_PAPER}, §IV-C in small", placing),
)

STUDIES: dict[str, Study] = {study.name: study for study in _EVERY}

__all__ = ["STUDIES", "Workbench"]
