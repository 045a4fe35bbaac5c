"""The file that is submitted."""
