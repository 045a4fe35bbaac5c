"""Compute in parallel on a Ray cluster that the environment variable PIPELINE_CLUSTER names.

Ray (https://docs.ray.io) is imported only where that variable is set.
"""

from pipeline.cluster.connection import connected, wanted
from pipeline.cluster.here import Here, Job, Workers
from pipeline.cluster.opened import opened

__all__ = ["Here", "Job", "Workers", "connected", "opened", "wanted"]
