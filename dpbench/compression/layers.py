"""Which transformer layers a smaller model keeps. Plain numbers, no torch: the models' side is `dpbench.compression.cutting`."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

NamedMap = Literal["spread", "first", "last"]
LayerMap = NamedMap | list[int]


def layer_map(choice: LayerMap, layers: int, depth: int) -> list[int]:
    """Return the numbers of the `layers` layers that are kept of a model of `depth`, in order.

    `spread`: every depth/layers-th from the first on (6 to 3: 0, 2, 4; 12 to 6: 0, 2, .. 10), as DistilBERT is initialized;
    `first`, `last`; or the layers' numbers.

    Raises:
        ValueError: more layers than there are, a number that is no layer, too many or too few, or not in rising order.
    """
    if not 1 <= layers <= depth:
        raise ValueError(f"layers {layers}: the model that they are taken from has {depth}")
    if isinstance(choice, list):
        if len(choice) != layers:
            raise ValueError(f"layer_map {choice}: {len(choice)} layers, where layers says {layers}")
        if bad := [k for k in choice if not 0 <= k < depth]:
            raise ValueError(f"layer_map {choice}: {bad[0]} is out of range, the layers are 0 to {depth - 1}")
        if any(b <= a for a, b in pairwise(choice)):
            raise ValueError(f"layer_map {choice}: layers must rise, none twice")
        return list(choice)
    if choice == "first":
        return list(range(layers))
    if choice == "last":
        return list(range(depth - layers, depth))
    return [k * depth // layers for k in range(layers)]


def drop_order(kept: list[int], depth: int, first: Literal["top", "bottom"]) -> list[int]:
    """Return the layers to drop by position, one after another: those not kept, from the top down or from the bottom up."""
    dropped = [k for k in range(depth) if k not in kept]
    return dropped[::-1] if first == "top" else dropped
