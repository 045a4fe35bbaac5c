"""Provides the training loop, its batches, and the stage that trains the clean model."""
