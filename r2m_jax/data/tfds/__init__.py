"""Records as tensorflow-datasets: prepared as array_record, read without TensorFlow.

Importing this package registers the builders, so that ``tfds.builder("df40", source=…)`` finds them.
"""

from r2m_jax.data.tfds.builders import BUILDERS, CelebDf, Df40, FaceForensics, Generic, SynthBuster, UniversalFakeDetect
from r2m_jax.data.tfds.core import RecordsBuilder
from r2m_jax.data.tfds.prepare import prepare, prepare_source
from r2m_jax.data.tfds.source import TfdsSource

__all__ = [
    "BUILDERS", "RecordsBuilder", "Generic", "Df40", "FaceForensics", "CelebDf", "UniversalFakeDetect", "SynthBuster",
    "prepare", "prepare_source", "TfdsSource",
]  # fmt: skip
