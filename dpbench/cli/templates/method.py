"""NAME: say here how a step works, and where it was published."""

from __future__ import annotations

from dpbench.methods.engines import loop

# `scopes` are the clipping scopes that the engine does, `adaptive` whether it does adaptive thresholds.
PLUGIN = {
    "kind": "engine",
    "name": "NAME",
    "version": 1,
    "summary": "how per-example gradients are bounded, in one line",
    "private": True,
    "scopes": ["flat", "per_layer", "per_tensor"],
    "adaptive": False,
}


class Engine(loop.Engine):
    """One example at a time through plain autograd: slow and obvious, as a start.

    A new engine subclasses `dpbench.methods.engines.base.Handle` and implements `_accumulate(losses, batch)`: it adds
    the bounded gradients of a physical batch to the step's sums and returns the losses [B], detached. The base class
    does the sums, the noise and the guards, and takes name and scopes from `PLUGIN`.

    Guarantee: each example adds at most C_k in L2 to group k. The parity tests compare every step with a reference in float64.
    """

    def _accumulate(self, losses, batch):
        return super()._accumulate(losses, batch)
