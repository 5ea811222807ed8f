"""Memory and throughput of training steps, engines measured in turn inside one run."""

from dpbench.measure.throughput import Settings, check, run, uses

PLUGIN = {"kind": "job", "name": "throughput", "version": 1, "summary": "memory and throughput of training steps"}
