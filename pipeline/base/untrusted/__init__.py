"""Reads files from outside without trusting anything that they say."""
