"""Fine-tuning on stored adversarial images, and training on images made for every batch."""
