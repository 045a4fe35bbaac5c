"""Exports the file that is submitted."""
