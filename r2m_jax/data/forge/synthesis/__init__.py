"""Entire face synthesis: every pixel comes out of a decoder, learned from generator images or fixed."""

from r2m_jax.data.forge.synthesis import (
    adversarial,
    autoencoder,
    codebook,
    diffusion,
    eigenface,
    patches,
    spectrum,
    upsampling,
)

METHODS = (
    *codebook.METHODS,
    *patches.METHODS,
    *upsampling.METHODS,
    *spectrum.METHODS,
    *eigenface.METHODS,
    *autoencoder.METHODS,
    *adversarial.METHODS,
    *diffusion.METHODS,
)

__all__ = ["METHODS"]
