"""Measurements; their results lie in `benchmarks/results/` and name the machine."""
