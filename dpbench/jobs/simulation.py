"""Does a training step fit a device, how large may its batch be, and what does a roofline say of its speed: no GPU needed."""

from dpbench.measure.simulation import Settings, check, run, uses

PLUGIN = {"kind": "job", "name": "simulation", "version": 1, "summary": "memory and roofline of steps, without the device"}
