"""Audit a run: recompute what can be recomputed, and check it against the run's records."""
