"""Measure the pipeline; results are stored in `benchmarks/results/` and name the machine."""
