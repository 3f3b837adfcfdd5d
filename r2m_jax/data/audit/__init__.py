"""Auditing a data set: files, leaks, collisions, and what metadata alone gives away."""

from r2m_jax.data.audit.facts import Facts, examine
from r2m_jax.data.audit.findings import Finding
from r2m_jax.data.audit.report import Audit, audit
from r2m_jax.data.audit.scan import default_cache, scan

__all__ = ["Audit", "Facts", "Finding", "audit", "default_cache", "examine", "scan"]
