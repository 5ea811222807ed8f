"""A run's result file: written whole or not at all, its meaning and its digest checked on every read."""
