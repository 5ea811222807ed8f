"""DPZero (Zhang et al., ICML 2024, Algorithm 2): each example's derivative along the direction is one clipped, noised number."""

from __future__ import annotations

PLUGIN = {
    "kind": "zeroth",
    "name": "dpzero",
    "version": 1,
    "summary": "zeroth-order SGD; scalar clip, scalar Gaussian noise",
    "private": True,
    "clips": "scalar",
    "noise": "gaussian",
}
