"""Gradient descent with clipped gradients on a quadratic, where normalising stalls and a stability constant does not."""

from dpbench.measure.convergence import Settings, check, run, uses

PLUGIN = {"kind": "job", "name": "convergence", "version": 1, "summary": "least gradient norm on a quadratic after T steps"}
