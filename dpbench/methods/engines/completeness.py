"""Checks, on a few examples, that hooks capture the complete gradient of a model, separately for each example."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import Sums, Use, accumulation_dtype
from dpbench.methods.engines.batches import Batch, Losses, batch_size, select
from dpbench.methods.engines.capture import Capture, Pass
from dpbench.methods.engines.functional import rounding_tolerance
from dpbench.methods.engines.layers import Layer

_OF_TERMS = 16
"""How far a captured gradient may be from plain autograd's in addition to `rounding_tolerance`, in units in the last place of the
terms that add up to it: gradients that cancel consist of rounding alone."""

_IN_ROWS = {torch.float64: 1e-9, torch.float32: 1e-5}
_IN_ROWS_OF_HALVES = 1e-2
_WEIGHTS = 20221104  # a seed like any other
_WEIGHED, _WEIGHED_IN_HALVES = 1e-3, 5e-2  # tolerances for weights that differ by some tenths


def look_at_arguments(capture: Capture, losses: Losses, model: nn.Module, batch: Batch, open_pass: Pass) -> None:
    """Note which arguments of each layer's calls have the batch first, from passes over two batches of different sizes."""
    size = batch_size(batch)
    if not open_pass.shapes or size < 2:
        return
    fewer, _ = capture.losses(losses, model, select(batch, slice(size - 1)))
    fewer.close()
    for call, lengths in open_pass.shapes.items():
        if len(others := fewer.shapes.get(call, ())) == len(lengths):
            capture.batched[call] = tuple(
                length == size and other == size - 1 for length, other in zip(lengths, others, strict=True)
            )


def check_rows_apart(open_pass: Pass, values: Tensor) -> None:
    """Check that the loss of each example has a gradient only in that example's row of every layer's output.

    Raises:
        DpbenchError: Another row has one. The message names the layer.
    """
    for index in range(len(values)):

        def watch(layer: Layer, use: Use, index: int = index) -> None:
            sizes = use.g.detach().flatten(1).abs().amax(1) if use.g[0].numel() else use.g.new_zeros(len(use.g))
            others = torch.cat([sizes[:index], sizes[index + 1 :]])
            if len(others) and others.max() > _IN_ROWS.get(use.g.dtype, _IN_ROWS_OF_HALVES) * sizes.max():
                raise DpbenchError(
                    f"the loss of example {index} depends on other rows of the output of {layer.name} than that of the example: "
                    "examples are mixed, or the first dimension is not the batch",
                    "compute each loss from one example, with the batch first in every layer (expand position ids to [B, T], "
                    "batch_first=True); or use the engine 'loop'",
                )

        if values[index].requires_grad:
            open_pass.watched(values[index], watch)


def check_rows_in_place(open_pass: Pass, values: Tensor) -> None:
    """Check that row i of every layer's output belongs to example i, by two more backward passes.

    In the row of each example the gradient of the weighted losses is that of the plain losses times the example's weight.

    Raises:
        DpbenchError: A row belongs to another example. The message names the layer.
    """
    if len(values) < 2 or not values.requires_grad:
        return
    weights = 1 + torch.rand(len(values), generator=torch.Generator().manual_seed(_WEIGHTS), dtype=torch.float64)
    weights = weights.to(values.device)
    plain: list[Tensor] = []
    open_pass.watched(values.sum(), lambda _, use: plain.append(_norms_of_rows(use)))
    expected = iter(plain)

    def watch(layer: Layer, use: Use) -> None:
        norms = next(expected)
        allowed = _WEIGHED if use.g.dtype == values.dtype == accumulation_dtype(values) else _WEIGHED_IN_HALVES
        differs = (_norms_of_rows(use) - norms * weights).abs() > allowed * norms
        if (differs & norms.isfinite()).any():
            raise DpbenchError(
                f"a row of the output of {layer.name} belongs to another example than the same row of the batch: examples change "
                "places inside the model, or are mixed",
                "keep the examples of a batch in their order; or use the engine 'loop'",
            )

    open_pass.watched((values.double() * weights).sum(), watch)


def _norms_of_rows(use: Use) -> Tensor:
    return torch.linalg.vector_norm(use.g.flatten(1), dim=1, dtype=torch.float64)


def check_complete(open_pass: Pass, values: Tensor, trainable: Mapping[str, nn.Parameter]) -> bool:
    """Check that the unclipped captured gradients, summed over the examples, are plain autograd's.

    Returns:
        Whether all could be compared; False if a plain gradient is not finite.

    Raises:
        DpbenchError: They are not. The message names the tensor.
    """
    sums: dict[int, Tensor] = {}
    scales: dict[int, float] = {}
    dtypes: dict[int, torch.dtype] = {}

    def watch(layer: Layer, use: Use) -> None:
        parameters = layer.parameters
        into = Sums(
            {n: torch.zeros(p.shape, dtype=accumulation_dtype(use.g), device=use.g.device) for n, p in parameters.items()}
        )
        with torch.no_grad():
            layer.leaf.add_weighted(use, torch.ones(len(use.g), dtype=accumulation_dtype(use.g), device=use.g.device), into)
        size = float(use.g.double().norm()) * max(1.0, float(use.x.double().norm()) if use.x.is_floating_point() else 1.0)
        for name, parameter in parameters.items():
            key = id(parameter)
            sums[key] = sums[key] + into[name] if key in sums else into[name]
            scales[key] = scales.get(key, 0.0) + size
            dtypes[key] = use.g.dtype

    plain = open_pass.watched(values.sum(), lambda *_: None, list(trainable.values()))
    open_pass.watched(values.sum(), watch)
    finite = True
    for (name, parameter), gradient in zip(trainable.items(), plain, strict=True):
        captured = sums.pop(id(parameter), None)
        if gradient is None and captured is None:
            continue
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        if not gradient.isfinite().all():
            finite = False
            continue
        captured = torch.zeros_like(gradient) if captured is None else captured
        dtype = dtypes.get(id(parameter), gradient.dtype)
        wide = accumulation_dtype(gradient)
        difference, norm = float(captured.to(wide).sub_(gradient).norm()), float(gradient.norm(dtype=wide))
        rounding = _OF_TERMS * torch.finfo(dtype).eps * scales.get(id(parameter), 0.0)
        if not difference <= max(rounding_tolerance(dtype) * norm, rounding):
            raise DpbenchError(
                f"the gradient of {name} is not what its layer's calls show of it (norm {norm:.3g}, {difference:.3g} of it "
                "differs): it is used in another way as well, or its module computes something else when it is called again",
                "call the layer instead of using its tensor, draw no random numbers in its forward, or use the engine 'loop'",
            )
    return finite
