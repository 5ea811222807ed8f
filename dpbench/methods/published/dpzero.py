"""DPZero's published code (Liang137/DPZero at 485f236), with the fault ZERO-2 kept: its noise is the next draw of the generator
that has just made the direction, so whoever can make the direction again can make the noise again."""

from __future__ import annotations

PLUGIN = {
    "kind": "published_zeroth",
    "name": "dpzero_published",
    "version": 1,
    "summary": "DPZero's published code: the noise follows from the public seed of the direction",
    "private": True,
    "clips": "scalar",
    "noise": "gaussian",
    "noise_of_directions": True,
    "deviations": ["ZERO-2"],
    "why": "the noise follows from the seed of the direction, which is public",
}
