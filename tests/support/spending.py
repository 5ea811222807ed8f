"""Epsilon of one stage by its numbers."""

from __future__ import annotations

from typing import Any

from dpbench.privacy import accounting


def epsilon_of(*, noise_multiplier: float, sample_rate: float, steps: int, **options: Any) -> float:
    """Of `steps` releases; options: as in `accounting.epsilon`."""
    return accounting.epsilon((accounting.Release(noise_multiplier, sample_rate, steps),), **options)
