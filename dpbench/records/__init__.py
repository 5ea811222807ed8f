"""A run's result file: written whole or not at all, validated both ways."""
