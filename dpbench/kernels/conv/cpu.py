"""Convolutions: patches of a few examples at a time, then matrix products as for linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dpbench.kernels.leaf import Factor, Later, Leaf, Sums, Use, accumulation_dtype, weighted_factors
from dpbench.kernels.linear.cpu import gram_is_shorter, gram_sq_norms
from dpbench.kernels.small import squared

CHUNK = {"cpu": 1 << 22}
"""The bytes of patches and gradients that are formed at a time, at least one example: on a CPU a few times a core's cache."""
CHUNK_ELSEWHERE = 1 << 28

KEPT = 1 << 24
"""The bytes of a layer's per-example gradients that may be kept until all norms are known, even if x and g are smaller."""

GRAM_BELOW = 20.0
"""Gram norms and one weighted product are used where P^2 (n + O) < GRAM_BELOW x n O, with O of one group. They then take less
time than each example's gradient, read for its norm and once more for the sum. From measurements on one core."""

_RUN = 16  # adjacent values from which on it is faster to copy patches with their channels last


class ConvLeaf(Leaf):
    """`nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`, any stride, padding, dilation and groups: weight [O, C / groups, ...], bias [O].

    In comments and docstrings: P output positions, n = C / groups x kernel elements the inputs of one output value.
    """

    modules: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    module: nn.modules.conv._ConvNd
    norms_of_products = True  # a subclass whose gradient is a map of the product has no Gram norms

    def pulled_back(self, products: Tensor) -> Tensor:
        """Map gradients of the weight used in the convolution to those of the parameter; [b, O, n] each, channels last."""
        return products

    def gradients(self, use: Use) -> Sums:
        """Return name -> [b, elements] in fp32 or wider, with those of the weight in the order O, kernel, channels."""
        wide, gradients = accumulation_dtype(use.g), Sums()
        if "weight" in self.names:
            g, groups = use.g.to(wide), self.module.groups
            products = torch.bmm(_of_groups(g, groups), self._patches(use.x.to(use.g.dtype).to(wide)))
            gradients["weight"] = self.pulled_back(products.view(len(g), g.shape[1], products.shape[2])).flatten(1)
        if "bias" in self.names:
            gradients["bias"] = use.g.flatten(2).sum(2, dtype=wide)
        return gradients

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        gradients = self.gradients(Use(use.x[index : index + 1], use.g[index : index + 1]))
        self._add(gradients, torch.ones(1, device=use.g.device), into)

    def sq_norms(self, use: Use) -> Tensor:
        positions, inputs, outputs = self._sizes(use)
        groups = self.module.groups
        gram = "weight" in self.names and self.norms_of_products
        if not gram or not gram_is_shorter(positions, inputs, outputs // groups):
            return torch.cat([squared(self.gradients(part)) for part in self._parts(use)])
        squares = []
        for part in self._parts(use, 2 * positions * positions * groups):
            g = _of_groups(part.g, groups).mT
            squares.append(gram_sq_norms(self._patches(part.x.to(g.dtype)), g).view(len(part.g), groups).sum(1))
        norms = torch.cat(squares)
        return norms + squared(self._only_bias(use)) if "bias" in self.names else norms

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        if use.g.device.type != "cpu":  # there torch may round the products of a convolution more than others
            self._add_in_parts(use, factors, into)
            return
        if "weight" in self.names:
            _place(self.pulled_back(self._weighted_product(use, factors)), into["weight"])
        if "bias" in self.names:
            self._add(self._only_bias(use), factors, into)

    def measured(self, use: Use) -> tuple[Tensor, Later]:
        """Measure as in `Leaf.measured`, keeping gradients no larger than x and g or `KEPT`, unless Gram norms are cheaper."""
        _, inputs, outputs = self._sizes(use)
        gradient_bytes = len(use.g) * inputs * outputs * accumulation_dtype(use.g).itemsize
        if self._gram_is_cheaper(use) or gradient_bytes > max(KEPT, use.x.nbytes + use.g.nbytes):
            return super().measured(use)
        parts = [self.gradients(part) for part in self._parts(use)]
        return torch.cat([squared(part) for part in parts]), partial(self._add_formed, parts)

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        if self._gram_is_cheaper(use):
            return self.two_stage(use, factor, into)
        into.zeroed()
        norms = []
        for part in self._parts(use):
            gradients = self.gradients(part)
            norms.append(squared(gradients).sqrt())
            self._add_formed([gradients], *weighted_factors(norms[-1], factor), into)
        return torch.cat(norms)

    def _gram_is_cheaper(self, use: Use) -> bool:
        """Return whether it is cheaper to form all norms first, by Gram matrices, and then one weighted product."""
        if "weight" not in self.names or not self.norms_of_products:
            return False
        positions, inputs, outputs = self._sizes(use)
        outputs //= self.module.groups
        return positions * positions * (inputs + outputs) < GRAM_BELOW * inputs * outputs

    def _sizes(self, use: Use) -> tuple[int, int, int]:
        """Return (P, n, O)."""
        inputs = self.module.in_channels // self.module.groups * torch.Size(self.module.kernel_size).numel()
        return use.g.shape[2:].numel(), inputs, use.g.shape[1]

    def _parts(self, use: Use, more: int = 0) -> Iterator[Use]:
        """Yield the examples in pieces of `CHUNK` bytes; an empty batch is one piece.

        Args:
            more: Elements that each example needs in addition.
        """
        positions, inputs, outputs = self._sizes(use)
        elements = (positions * self.module.groups + outputs) * inputs + more
        room = CHUNK.get(use.g.device.type, CHUNK_ELSEWHERE)
        size = max(1, room // (elements * accumulation_dtype(use.g).itemsize))
        for start in range(0, max(1, len(use.g)), size):
            yield Use(use.x[start : start + size], use.g[start : start + size])

    def _only_bias(self, use: Use) -> Sums:
        return Sums({"bias": use.g.flatten(2).sum(2, dtype=accumulation_dtype(use.g))})

    def _patches(self, x: Tensor) -> Tensor:
        """Return the patches [b x groups, P, n] of x [b, C, ...], with the channels last among the n.

        They are copied in runs of adjacent values: channels with the kernel's columns, or, where these are few, the positions of
        a row.
        """
        module, dimensions = self.module, len(self.module.kernel_size)
        x = self._padded(x)
        short = x.shape[1] // module.groups * module.kernel_size[-1] < _RUN and module.stride[-1] == 1
        x = x.contiguous().movedim(1, -1) if short else x.movedim(1, -1).contiguous()
        for dim, (kernel, dilation, stride) in enumerate(zip(module.kernel_size, module.dilation, module.stride, strict=True), 1):
            x = x.unfold(dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        matrices = len(x) * module.groups
        x = x.unflatten(1 + dimensions, (module.groups, -1))
        x = x.movedim(1 + dimensions, 1)  # [b, groups, positions, channels, kernel]
        x = x.movedim(2 + dimensions, -1)
        positions, inputs = x.shape[2 : 2 + dimensions].numel(), x.shape[2 + dimensions :].numel()
        if short:
            return x.movedim(list(range(2, 2 + dimensions)), list(range(-dimensions, 0))).reshape(matrices, inputs, positions).mT
        return x.reshape(matrices, positions, inputs)

    def _padded(self, x: Tensor) -> Tensor:
        mode = "constant" if self.module.padding_mode == "zeros" else self.module.padding_mode
        around = self.module._reversed_padding_repeated_twice
        return pad(x, around, mode=mode) if any(around) else x

    def _weighted_product(self, use: Use, factors: Tensor) -> Tensor:
        """Return sum_i factors[i] x product_i, [1, O, n], by torch's convolution as in non-private training.

        Half precision is widened first, because a factor or sum that is rounded takes an example over its bound.
        """
        module, dimensions = self.module, len(self.module.kernel_size)
        wide = accumulation_dtype(use.g)
        scaled = use.g.to(wide) * factors.to(wide).view(-1, *[1] * (1 + dimensions))
        shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        x, like = self._padded(use.x.to(use.g.dtype).to(wide)), scaled.new_empty(shape)
        no_padding, weight_alone = [0] * dimensions, [False, True, False]
        options = (module.stride, no_padding, module.dilation, False, no_padding, module.groups, weight_alone)
        _, weight_gradient, _ = torch.ops.aten.convolution_backward(scaled, x, like, None, *options)
        return weight_gradient.movedim(1, -1).reshape(1, module.out_channels, -1)

    def _add_in_parts(self, use: Use, factors: Tensor, into: Sums) -> None:
        start = 0
        for part in self._parts(use):
            self._add(self.gradients(part), factors[start : start + len(part.g)], into)
            start += len(part.g)

    def _add_formed(self, parts: list[Sums], factors: Tensor, finite: Tensor, into: Sums) -> None:
        """Add the finite gradients, as in `add_finite`, from gradients already formed in pieces."""
        into.zeroed()
        all_finite, start = bool(finite.all()), 0
        for gradients in parts:
            rows = slice(start, start + len(next(iter(gradients.values()))))
            start = rows.stop
            if all_finite:
                self._add(gradients, factors[rows], into)
            else:
                kept = finite[rows]
                self._add(Sums({name: value[kept] for name, value in gradients.items()}), factors[rows][kept], into)

    def _add(self, gradients: Sums, factors: Tensor, into: Sums) -> None:
        for name, value in gradients.items():
            total = factors.to(value.dtype) @ value
            if name == "weight":
                _place(total.view(1, self.module.out_channels, -1), into[name])
            else:
                into[name].add_(total)


def _of_groups(g: Tensor, groups: int) -> Tensor:
    """Return g [b, O, ...] as [b x groups, O / groups, P]."""
    return g.reshape(len(g) * groups, g.shape[1] // groups, g.shape[2:].numel())


def _place(gradient: Tensor, into: Tensor) -> None:
    """Add gradient [1, O, n], channels last, to `into` [O, C / groups, ...]."""
    into.add_(gradient.view(into.shape[0], *into.shape[2:], into.shape[1]).movedim(-1, 1))
