"""Reproducible, auditable hardening of image classifiers with cached adversarial sets."""

import sys
from pathlib import Path

# Only where a command begins. Its imports take seconds, and what goes wrong meanwhile is one line.
if sys.argv and (sys.argv[0] == "-m" or Path(sys.argv[0]).name == "hardening"):
    from pipeline.base import starting

    sys.excepthook = starting.explain
