"""Fine-tune on stored adversarial images, and train on images made for every batch."""
