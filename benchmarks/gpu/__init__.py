"""Measure the pipeline on a GPU, phase by phase, against the card's own peaks."""
