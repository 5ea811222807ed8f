"""DPGD-0th (Zhang et al., ICML 2024, Algorithm 1): the estimated gradient is clipped and noised as a vector."""

from __future__ import annotations

PLUGIN = {
    "kind": "zeroth",
    "name": "dpgd_0th",
    "version": 1,
    "summary": "zeroth-order SGD; vector clip, vector Gaussian noise",
    "private": True,
    "clips": "vector",
    "noise": "gaussian",
}
