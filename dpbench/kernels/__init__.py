"""Norms and clipped sums of the per-example gradients of single modules, without all B gradients in memory.

There is one folder for each operation: `cpu.py` is the implementation in plain torch (it runs on
any device), and `README.md` has formula and cost. `leaf.py` defines what an operation must offer.
"""
