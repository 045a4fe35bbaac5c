"""Stage `adopt@<model>`: take a model that was trained elsewhere."""
