"""Flash attention on tensors without storage: the memory and traffic of a GPU kernel, without T x T scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_BLOCK = 128  # tokens that the backward kernel's fp32 workspace is rounded up to


_library = torch.library.Library("dpbench_simulate", "DEF")
_library.define("attention(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)")
_library.define("attention_backward(Tensor g, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse) -> (Tensor, Tensor, Tensor)")
_forward, _backward = torch.ops.dpbench_simulate.attention, torch.ops.dpbench_simulate.attention_backward


@torch.library.register_fake("dpbench_simulate::attention", lib=_library)
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Map q, k, v [B, H, T, D] to the output [B, H, T, D], stored as [B, T, H, D], and log-sum-exp [B, H, T] in fp32."""
    batch, heads, tokens, width = q.shape
    return q.new_empty(batch, tokens, heads, width).transpose(1, 2), q.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.register_fake("dpbench_simulate::attention_backward", lib=_library)
def _(g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v."""
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _over_examples(op: Any) -> Any:
    """Return a rule for vmap that merges the mapped dimension into B."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        merged = []
        for value, dim in zip(args, in_dims, strict=True):
            first = value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            merged.append(first.flatten(0, 1))
        outputs = op(*merged)
        return tuple(o.unflatten(0, (info.batch_size, -1)) for o in outputs), (0,) * len(outputs)

    return rule


torch.library.register_vmap("dpbench_simulate::attention", _over_examples(_forward), lib=_library)
torch.library.register_vmap("dpbench_simulate::attention_backward", _over_examples(_backward), lib=_library)


class Attention(torch.autograd.Function):
    """The two operations as one differentiable function; it also runs inside torch.func transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return _forward(q, k, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, lse = ctx.saved_tensors
        batch, heads, tokens, width = q.shape
        rounded = -(-tokens // _BLOCK) * _BLOCK
        # The fp32 workspace of the kernel: row sums of g x out, and for 16-bit inputs the query's gradient while it is summed.
        rooms = [g.new_empty(batch, heads, rounded, dtype=torch.float32)]
        if q.dtype in (torch.bfloat16, torch.float16):
            rooms.append(g.new_empty(batch, heads, rounded, -(-width // 32) * 32, dtype=torch.float32))
        return _backward(g, q, k, v, out, lse)


@register_flop_formula(_forward)
def _forward_flops(q: Any, *args: Any, **kwargs: Any) -> int:
    """Count two products over the causal half of T x T."""
    batch, heads, tokens, width = q
    return 2 * batch * heads * tokens * tokens * width


@register_flop_formula(_backward)
def _backward_flops(g: Any, q: Any, *args: Any, **kwargs: Any) -> int:
    """Count five products, the scores among them, over the causal half."""
    batch, heads, tokens, width = q
    return 5 * batch * heads * tokens * tokens * width


@contextmanager
def flash() -> Iterator[None]:
    """Replace `scaled_dot_product_attention` on the meta device by a GPU's fused kernel, except with masks or dropout."""
    plain = torch.nn.functional.scaled_dot_product_attention

    def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, **kwargs: Any) -> Tensor:
        if q.device.type != "meta" or attn_mask is not None or dropout_p:
            return plain(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, **kwargs)
        return Attention.apply(q, k, v)[0]

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", fused):
        yield
