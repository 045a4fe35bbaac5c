"""Compute in parallel on a Ray cluster that the environment variable PIPELINE_CLUSTER names.

Ray (https://docs.ray.io) is imported only where that variable is set.
"""
