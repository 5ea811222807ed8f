"""Generated stand-ins for real datasets: deterministic, learnable, and marked synthetic wherever their numbers appear.

Each module has `VERSION` (raised when its text changes), `SPLITS` and `generate(split) -> {column: values}`.
"""
