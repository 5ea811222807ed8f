"""DP-ZO with Laplace noise (Tang et al., 2024), a control: it is DPZero with other noise on the sum."""

from __future__ import annotations

PLUGIN = {
    "kind": "zeroth",
    "name": "dp_zo_laplace",
    "version": 1,
    "summary": "zeroth-order SGD; scalar clip, scalar Laplace noise",
    "private": True,
    "clips": "scalar",
    "noise": "laplace",
}
