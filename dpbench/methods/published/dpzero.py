"""DPZero's published code (Liang137/DPZero at 485f236), including its fault ZERO-2.

Its noise is the next draw of the generator that has just drawn the direction, so anybody who can reproduce the direction can
reproduce the noise.
"""

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
