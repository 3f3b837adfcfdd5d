"""Training augmentation of DeepfakeBench and DF40: one table of draws, applied by the host or by the device.

``policy`` says what is drawn and how often, ``draws`` turns random numbers into the parameters of one image, ``host``
applies them with OpenCV to one image, ``device`` with JAX to a batch. ``host`` and ``device`` are imported by name, so
that a worker process that only augments on the host does not load the device's programs.
"""

from r2m_jax.data.augment.draws import Draws
from r2m_jax.data.augment.policy import PRESETS, Policy, preset, read_data_aug

__all__ = ["Policy", "PRESETS", "preset", "read_data_aug", "Draws"]
