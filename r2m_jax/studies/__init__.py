"""The paper's tables and figures as functions of a context; a study of your own is a file here and a line below."""

from r2m_jax.studies.compressed import merge_compress
from r2m_jax.studies.context import Context
from r2m_jax.studies.domains import domains
from r2m_jax.studies.grid import grid
from r2m_jax.studies.heads import heads
from r2m_jax.studies.integration import integration
from r2m_jax.studies.perturbed import robustness
from r2m_jax.studies.result import Figure, Result, Study, Unavailable
from r2m_jax.studies.retention import retention, trade
from r2m_jax.studies.scaling import scaling
from r2m_jax.studies.seen_unseen import table1, table2
from r2m_jax.studies.similarity import similarity

_EVERY = (
    Study("table1", "Seen forgeries", "R²M, Table 1", table1),
    Study("table2", "Unseen forgeries and domains", "R²M, Table 2 (and Protocol 2 of Table 1)", table2),
    Study("retention", "What merging keeps and wins: DROP and GAIN", "R²M, Fig. 4, Tables A.2 and A.3", retention),
    Study("pareto", "DROP against GAIN", "R²M, Fig. 5", trade),
    Study("scaling", "Twice as many specialists", "R²M, Fig. 6, Tables A.4 and A.5", scaling),
    Study("integration", "A new forgery arrives", "R²M, §4.3 and Fig. 7", integration),
    Study("domains", "Real images of different domains", "R²M, §4.4 and Table 3", domains),
    Study("heads", "Which head", "R²M, Table A.1", heads),
    Study("grid", "Scale and rank of R²M", "R²M, Fig. A.1", grid),
    Study("probe", "Similarity to the weight average", "R²M, Fig. 2", similarity),
    Study("robustness", "Perturbed images", "CoRIT (arXiv 2603.24057), eq. 26", robustness),
    Study("merge-compress", "Merging and compressing", "no paper: arXiv 2504.21066 beside R²M", merge_compress),
)

STUDIES: dict[str, Study] = {study.name: study for study in _EVERY}

__all__ = ["STUDIES", "Context", "Figure", "Result", "Study", "Unavailable"]
