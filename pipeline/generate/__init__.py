"""Attack every image of the clean set once, and store the results."""
