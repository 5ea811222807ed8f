"""Virtual devices: the groups of a pipeline's stages in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dpbench.methods.engines.layers import Layout
from dpbench.models.stages import stage_of

if TYPE_CHECKING:
    from dpbench.models.wrappers import LanguageModel


def by_stage(model: LanguageModel, stages: int) -> Callable[[Layout], Layout]:
    """Return a `globalize_layout` for `engines.attach`: one group for each stage into which a pipeline cuts the language model.

    With scope per_device this is the mechanism of as many processes; only the noise is drawn from other streams.

    Raises:
        DpbenchError: more stages than blocks, or a head that is the embedding.
    """
    stage = {id(p): number for number in range(stages) for p in stage_of(model, number, stages).parameters()}

    def grouped(local_layout: Layout) -> Layout:
        layout = Layout(local_layout.clusters, [[] for _ in range(stages)], [0] * stages)
        for cluster in local_layout.clusters:
            tensors = {id(p): p for layer in cluster.layers for p in layer.parameters.values()}
            cluster.group = stage[next(iter(tensors))]
            layout.groups[cluster.group].append(cluster.name)
            layout.sizes[cluster.group] += sum(p.numel() for p in tensors.values())
        return layout

    return grouped
