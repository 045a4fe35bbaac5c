"""Reproducible, auditable hardening of image classifiers with cached adversarial sets."""
