"""Two private trainings that are one in exact arithmetic: to how many digits their weights agree after many noisy steps."""

from dpbench.measure.equivalence import Settings, check, run, uses

PLUGIN = {"kind": "job", "name": "equivalence", "version": 1, "summary": "digits to which two private trainings agree"}
