"""Labelled images of any source become the clean image set."""
