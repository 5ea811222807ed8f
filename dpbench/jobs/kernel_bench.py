"""The kernels themselves: held to the fp64 oracle first, then timed in turn at the shapes of real models."""

from dpbench.measure.kernel_bench import Settings, check, run, uses

PLUGIN = {"kind": "job", "name": "kernel_bench", "version": 1, "summary": "correctness, then time, of single kernels"}
