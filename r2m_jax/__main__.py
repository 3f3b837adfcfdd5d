"""``python -m r2m_jax`` is ``r2m``."""

from r2m_jax.cli import main

main()
