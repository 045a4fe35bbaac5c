"""What every stage uses; imports no torch."""
