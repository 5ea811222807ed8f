"""Distil a public encoder into one of fewer layers, on public text."""

from dpbench.compression.public_student import Settings, check, run, uses

PLUGIN = {
    "kind": "job",
    "name": "public_student",
    "version": 1,
    "summary": "distil an encoder into one of fewer layers on public text",
}
