"""Scores of generated texts against texts that people wrote for the same input."""
