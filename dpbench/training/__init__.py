"""Training: the one loop, its settings and its callbacks, for every task and every method."""
