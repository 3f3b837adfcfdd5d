"""CoRIT's tables and figures on a frozen tower whose tokens are computed once; a study is a file here and a line below.

Liu et al., arXiv 2603.24057, section V.
"""

from r2m_jax.studies.corit.ablation import ablation
from r2m_jax.studies.corit.against_probe import across_families, against_probe, backbones
from r2m_jax.studies.corit.bridge import bridge
from r2m_jax.studies.corit.collapsing import collapsing
from r2m_jax.studies.corit.frozen import Frozen, Tower
from r2m_jax.studies.corit.perturbed import robustness
from r2m_jax.studies.result import Study

_PAPER = "CoRIT (arXiv 2603.24057)"
_EVERY = (
    Study("corit-probe", "CoRIT against a linear probe", f"{_PAPER}, Tables I and VI in small", against_probe),
    Study("corit-families", "From one family to the others", f"{_PAPER}, V-B in small", across_families),
    Study("corit-robustness", "Perturbed images", f"{_PAPER}, Fig. 8", robustness),
    Study("corit-collapse", "Critical radius and signal by layer", f"{_PAPER}, Table VII and Fig. 6", collapsing),
    Study("corit-ablation", "What each part adds", f"{_PAPER}, Tables VIII, IX, XI, XII and XIII", ablation),
    Study("corit-backbones", "Other towers", f"{_PAPER}, Table X", backbones),
    Study("corit-bridge", "Heads over merged towers", "no paper: R²M's merging under CoRIT's heads", bridge),
)

STUDIES: dict[str, Study] = {study.name: study for study in _EVERY}

__all__ = ["STUDIES", "Frozen", "Tower"]
