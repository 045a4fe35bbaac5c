"""Estimate what a run costs before it begins: time, disk and memory of each stage."""
