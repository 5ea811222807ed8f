"""The methods of making a training step. `attach` is the only entry; see `dpbench.methods.protocol`."""

from dpbench.methods.registry import INFERENCE, KINDS, attach, find, kind_of

__all__ = ["INFERENCE", "KINDS", "attach", "find", "kind_of"]
