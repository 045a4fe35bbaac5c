"""How good a model is, and whether the numbers can be believed."""
