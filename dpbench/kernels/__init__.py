"""Per-example gradients of single modules: norms, clipped sums, never B gradients at once.

One folder an operation: `reference.py` is the fp64 oracle, `cpu.py` the implementation in plain torch (it runs on any
device), `README.md` has formula and cost. `leaf.py` says what an operation must offer.
"""
