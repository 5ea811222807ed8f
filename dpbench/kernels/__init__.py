"""Norms and clipped sums of the per-example gradients of single modules, without all B gradients in memory.

There is one folder for each operation: `reference.py` is the fp64 oracle, `cpu.py` the implementation in plain torch (it runs on
any device), and `README.md` has formula and cost. `leaf.py` defines what an operation must offer.
"""
