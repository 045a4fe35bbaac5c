"""Provides what every stage uses, without importing torch."""
