"""What one linear layer's training step moves and multiplies under each engine: counted, and on a GPU timed as well."""

from dpbench.measure.kernel_traffic import Settings, check, run, uses

PLUGIN = {"kind": "job", "name": "kernel_traffic", "version": 1, "summary": "bytes moved and FLOPs of one linear layer"}
