"""Tells the whole story of a run on one page."""
