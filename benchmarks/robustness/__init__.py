"""Compares recipes for robust models, and writes the table in docs/robustness.md."""
