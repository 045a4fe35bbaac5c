"""Readers of files from outside, which trust nothing that they say."""
