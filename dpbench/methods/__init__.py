"""Methods: how a training step is made. `attach` is the one entry; see `dpbench.methods.protocol`."""

from dpbench.methods.registry import INFERENCE, KINDS, attach, find, kind_of

__all__ = ["INFERENCE", "KINDS", "attach", "find", "kind_of"]
