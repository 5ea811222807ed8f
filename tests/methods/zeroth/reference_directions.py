"""Directions that are formed tensor by tensor and added by torch, from the same numbers as those that are added in place."""

from __future__ import annotations

import math

from dpbench.methods.zeroth.directions import WIDE, Directions, Narrow, _flat
from dpbench.privacy.noise import in_memory_order


class ReferenceDirections(Directions):
    def add_(self, step: int, scale: float, narrow: Narrow | None = None) -> None:
        ratio = math.sqrt(self.size) / self._gaussian_length(step) if self.kind == "sphere" else 1.0
        for number, (weight, numbers) in enumerate(self._numbers(step)):
            numbers.mul_(ratio)
            if narrow is not None and weight.dtype not in WIDE:
                with _flat(weight) as flat:
                    narrow((number, 0), flat, numbers)
                continue
            ordered = in_memory_order(weight)
            ordered.copy_(ordered.to(numbers.dtype) + scale * numbers.view(ordered.shape))
