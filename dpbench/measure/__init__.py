"""Measurements: memory and throughput of steps, inference, kernels; simulated steps; experiments in closed form."""
