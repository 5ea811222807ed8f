"""Random small models: a seed -> a model, its batch, its losses, and a sentence that says what they are.

    sample = draw(17)                  # what was drawn; `str(sample)` says it in words
    built = sample.build(torch.float64)
    built.losses(built.model, built.batch([0, 1, 2]))        # [3]

`build` makes the same model with the same numbers every time, so that nothing has to be copied: a copy of a model would keep
closures over the first one's tensors.
"""

from __future__ import annotations

from grammar import flows, held, layouts, ordinary, uses  # for their parts
from grammar.base import PARTS
from grammar.samples import Sample, draw

__all__ = ["PARTS", "Sample", "draw", "flows", "held", "layouts", "ordinary", "uses"]
