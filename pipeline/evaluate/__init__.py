"""Measure how good a model is, and whether the numbers can be believed."""
