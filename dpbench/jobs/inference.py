"""Time the inference of encoders on the CPU, all in turn in one run: latency of one example, throughput of a batch."""

from dpbench.measure.inference import Settings, check, run, uses

PLUGIN = {"kind": "job", "name": "inference", "version": 1, "summary": "latency and throughput of encoders' inference on the CPU"}
