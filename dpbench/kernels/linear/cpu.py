"""Linear layers: one example's product at a time in one reused buffer, or Gram norms where T is very short."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dpbench.kernels.leaf import Factor, Leaf, Sums, Use, accumulation_dtype

GRAM_BELOW = 25.0
"""Gram norms are used where T^2 (I + O) < GRAM_BELOW x I O: the arithmetic of two Gram matrices then takes less time than writing
one example's product and reading it twice. From measurements on two cores at about 150 GFLOP/s."""

_HALVED = 64  # tokens from which a quarter of the symmetric Gram matrices is left out instead of computed twice
_WIDENED = 1 << 22  # elements of both sides that are widened to fp32 at a time, if they are in half precision
_BLOCK = 1 << 18  # elements per dot product, which keeps the fp32 rounding of a norm near 1e-6


def gram_is_cheaper(tokens: int, inputs: int, outputs: int) -> bool:
    """Return whether T^2 (I + O) multiply-adds of two Gram matrices are faster than passing over an I x O product in memory."""
    return tokens * tokens * (inputs + outputs) < GRAM_BELOW * inputs * outputs


def gram_is_shorter(tokens: int, inputs: int, outputs: int) -> bool:
    """Return whether two Gram matrices, three quarters of them computed, take fewer multiply-adds than the product.

    This is the criterion where only the norm is needed, and the product is not reused.
    """
    return 3 * tokens * (inputs + outputs) < 4 * inputs * outputs


def squared(values: Tensor) -> Tensor:
    """Return the sum of squares of a contiguous tensor, in fp32 or wider."""
    flat = values.view(-1)
    if flat.dtype in (torch.bfloat16, torch.float16):
        flat = flat.float()
    if flat.numel() <= _BLOCK:
        return torch.dot(flat, flat)
    in_blocks = flat.numel() // _BLOCK * _BLOCK
    blocks = flat[:in_blocks].view(-1, _BLOCK)
    total = torch.stack([torch.dot(row, row) for row in blocks.unbind()]).sum()
    tail = flat[in_blocks:]
    return total + torch.dot(tail, tail) if tail.numel() else total


def gram_sq_norms(x: Tensor, g: Tensor) -> Tensor:
    """Return the [B] squared norms of the products of x [B, T, I] and g [B, T, O]: sum_tu (x_t . x_u)(g_t . g_u).

    Where the tokens of an example cancel, rounding could make the sum too small, even negative. The most that rounding can take
    away, 8 units in the last place of the terms with t = u, is therefore added.
    """
    wide = accumulation_dtype(g)
    x, g = x.to(wide), g.to(wide)
    if x.shape[1] == 1:
        return x.square().sum((1, 2)) * g.square().sum((1, 2))
    if x.shape[1] < _HALVED:
        return _with_rounding(torch.bmm(x, x.mT) * torch.bmm(g, g.mT)).clamp_(min=0)
    half = x.shape[1] // 2
    upper = torch.bmm(x[:, :half], x[:, :half].mT) * torch.bmm(g[:, :half], g[:, :half].mT)
    lower = torch.bmm(x[:, half:], x.mT) * torch.bmm(g[:, half:], g.mT)
    sums = _with_rounding(upper) + 2 * lower[:, :, :half].sum((1, 2)) + _with_rounding(lower[:, :, half:])
    return sums.clamp_(min=0)


def _with_rounding(terms: Tensor) -> Tensor:
    """Return the [B] sums of [B, T, T] terms plus the most that rounding may have taken from them."""
    return terms.sum((1, 2)) + 8 * torch.finfo(terms.dtype).eps * terms.diagonal(dim1=1, dim2=2).sum(1)


class LinearLeaf(Leaf):
    """`nn.Linear`: weight [O, I], bias [O]."""

    modules: tuple[type[nn.Module], ...] = (nn.Linear,)
    transposed = False

    def _flat(self, use: Use) -> tuple[Tensor, Tensor]:
        """Return x [B, T, I] and g [B, T, O] in the output gradient's dtype."""
        batch = len(use.g)
        g = use.g.reshape(batch, -1, use.g.shape[-1])
        return use.x.reshape(batch, -1, use.x.shape[-1]).to(g.dtype), g

    def _sides(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return (left, right) such that the weight gradient is left^T right."""
        return (x, g) if self.transposed else (g, x)

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        x, g = self._flat(use)
        if "weight" in into:
            left, right = (side.to(accumulation_dtype(g)) for side in self._sides(x[index], g[index]))
            into["weight"].add_(left.T @ right)
        if "bias" in into:
            into["bias"].add_(g[index].sum(0, dtype=into["bias"].dtype))

    def sq_norms(self, use: Use) -> Tensor:
        x, g = self._flat(use)
        total = torch.zeros(len(g), dtype=accumulation_dtype(g), device=g.device)
        if "weight" in self.names:
            total += self._weight_sq_norms(x, g)
        if "bias" in self.names:
            total += g.sum(1, dtype=total.dtype).square().sum(1)
        return total

    def _weight_sq_norms(self, x: Tensor, g: Tensor) -> Tensor:
        if gram_is_shorter(g.shape[1], x.shape[2], g.shape[2]):
            return gram_sq_norms(x, g)
        wide = accumulation_dtype(g)
        buffer = torch.empty(g.shape[2], x.shape[2], dtype=wide, device=g.device)
        return torch.stack([squared(_product(g_i.to(wide), x_i.to(wide), buffer)) for x_i, g_i in zip(x, g, strict=True)])

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        x, g = self._flat(use)
        if "weight" in into:
            left, right = self._sides(x, g)
            wide = accumulation_dtype(g)
            size = len(g) if g.dtype == wide else max(1, _WIDENED // max(1, left[:1].numel() + right[:1].numel()))
            pieces = (value.split(max(1, size)) for value in (left, right, factors))
            for left_i, right_i, factors_i in zip(*pieces, strict=True):
                _add_scaled(into["weight"], left_i.to(wide), right_i.to(wide), factors_i.to(wide))
        if "bias" in into:
            into["bias"].add_(factors.to(into["bias"].dtype) @ g.sum(1, dtype=into["bias"].dtype))

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        x, g = self._flat(use)
        if "weight" not in into or g.device.type != "cpu" or self._gram_is_cheaper(x, g):
            return self.two_stage(use, factor, into)
        weight, written = into["weight"], "weight" not in into.fresh
        into.fresh.discard("weight")
        into.zeroed()
        bias = g.sum(1, dtype=accumulation_dtype(g)) if "bias" in into else None
        left, right = self._sides(x, g)
        if left.shape[2] >= right.shape[2]:
            return single_pass(left, right, bias, factor, weight, into.get("bias"), written)
        turned = torch.empty(weight.shape[::-1], dtype=weight.dtype)
        norms = single_pass(right, left, bias, factor, turned, into.get("bias"), written=False)
        if written:
            weight.add_(turned.T)
        else:
            torch.mul(turned.T, 1, out=weight)  # half the time of copy_, which transposes on one core
        return norms

    def _gram_is_cheaper(self, x: Tensor, g: Tensor) -> bool:
        return gram_is_cheaper(g.shape[1], x.shape[2], g.shape[2])


class Conv1DLeaf(LinearLeaf):
    """transformers' `Conv1D` (GPT-2): weight [I, O]."""

    modules = (Conv1D,)
    transposed = True


def single_pass(
    left: Tensor, right: Tensor, bias: Tensor | None, factor: Factor, weight: Tensor, bias_sum: Tensor | None, written: bool
) -> Tensor:
    """Write or add sum_i factor_i left_i^T right_i, one product at a time in one buffer, and return the [B] norms.

    Args:
        left: [B, T, L] with L the longer side: products of many short rows are as fast as one product of the batch.
        bias: The bias gradients [B, O].
        written: Whether `weight` holds a sum to add to.
    """
    bias_squared = bias.square().sum(1).tolist() if bias is not None else [0.0] * len(left)
    buffer = torch.empty(weight.shape, dtype=left.dtype)
    dtype = accumulation_dtype(left)
    norms, factors = [], []
    for left_i, right_i, bias_i in zip(left.unbind(), right.unbind(), bias_squared, strict=True):
        _product(left_i, right_i, buffer)
        norm = math.sqrt(squared(buffer).item() + bias_i)
        norms.append(norm)
        if not math.isfinite(norm):
            factors.append(0.0)
            continue
        scale = factor(torch.tensor([norm], dtype=dtype)).item()
        factors.append(scale)
        if written:
            weight.add_(buffer, alpha=scale)
        elif buffer.dtype == weight.dtype:
            torch.mul(buffer, scale, out=weight)
        else:
            weight.copy_(buffer).mul_(scale)  # a product of half precision would be rounded, by example and at worst upwards
        written = True
    if not written:  # nothing finite, or nothing at all
        weight.zero_()
    result = torch.tensor(norms, dtype=dtype)
    if bias is not None and bias_sum is not None:
        finite = torch.isfinite(result)
        bias_sum.add_(torch.tensor(factors, dtype=dtype)[finite] @ bias[finite])
    return result


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Set out = left^T right. It is cleared and added to, because MKL clears a large `out` on one core when it overwrites."""
    return out.zero_().addmm_(left.T, right)


def _add_scaled(into: Tensor, left: Tensor, right: Tensor, factors: Tensor) -> None:
    """Add sum_i factors_i left_i^T right_i to `into`, for left [b, T, L] and right [b, T, R] in fp32 or wider.

    Guarantee: neither a factor, nor a scaled side, nor the sum over examples is rounded to half precision. Rounded to nearest, a
    factor takes an example over its bound, and a sum moves by more than what was added to it.
    """
    scale = factors[:, None, None]
    if left.shape[2] <= right.shape[2]:  # scale the smaller side
        left = left * scale
    else:
        right = right * scale
    left, right = left.flatten(0, 1), right.flatten(0, 1)
    if into.dtype == left.dtype == right.dtype:  # without a temporary
        into.addmm_(left.T, right)
    else:
        into.add_(left.T @ right)
