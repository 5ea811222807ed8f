"""How far the simulated peak memory of a step is from the measured one, on this machine."""

from dpbench.measure.simulation_error import Settings, check, run, uses

PLUGIN = {"kind": "job", "name": "simulation_error", "version": 1, "summary": "simulated peak memory against the measured one"}
