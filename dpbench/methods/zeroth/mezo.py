"""MeZO (Malladi et al., NeurIPS 2023): zeroth-order SGD, not private."""

from __future__ import annotations

PLUGIN = {
    "kind": "zeroth",
    "name": "mezo",
    "version": 1,
    "summary": "zeroth-order SGD along a random direction, not private",
    "private": False,
    "clips": None,
    "noise": None,
}
