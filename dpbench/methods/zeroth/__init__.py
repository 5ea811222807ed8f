"""Zeroth-order optimizers: a step needs two forward passes, one random direction and, of each example, one number."""
