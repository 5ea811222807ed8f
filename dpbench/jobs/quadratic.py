"""A search over steps, rates and bounds on a synthetic quadratic: how the best gradient norm grows with the dimension."""

from dpbench.measure.quadratic import Settings, check, run, uses

PLUGIN = {"kind": "job", "name": "quadratic", "version": 1, "summary": "private optimizers on a quadratic, by dimension"}
