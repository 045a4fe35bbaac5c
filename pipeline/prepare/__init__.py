"""Convert labelled images of any source into the clean image set."""
