"""Zeroth-order optimizers: a step needs two forward passes, one random direction, and one number for each example."""
