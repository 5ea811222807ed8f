"""The check of a clipping function when it is attached: factor x norm <= bound over a grid of norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dpbench.errors import DpbenchError

Form = Callable[[Tensor, float, float], Tensor]
"""(norms [B], bound, gamma) -> factors [B]."""

_DTYPES = (torch.float32, torch.float64)  # the dtypes of norms in engines
_STEPS = (0.0, 1e-6, 1e-3, 0.1, 0.5, 0.9, 1.0)  # relative distances from the bound, where functions change their formula


def grid(bound: float, dtype: torch.dtype) -> Tensor:
    """Return norms to try: 0, the smallest normal number, powers of ten over the range of fp32, and many near the bound."""
    limits = torch.finfo(dtype)
    powers = [10.0**power for power in range(-45, 39)]
    near = [bound * (1 + sign * step) for step in _STEPS for sign in (-1, 1)]
    wide = [bound * factor for factor in (1e-3, 0.01, 0.1, 3.0, 10.0, 100.0, 1e3, 1e6)]
    values = torch.tensor([0.0, limits.smallest_normal, limits.eps, limits.max, *powers, *near, *wide], dtype=torch.float64)
    return values[values <= limits.max].to(dtype).unique()


def allowed(norms: Tensor, bound: float) -> Tensor:
    """Return the largest allowed factor x norm, in fp64: the bound plus the rounding of a factor, which may be denormal."""
    limits = torch.finfo(norms.dtype)
    return bound * (1 + 4 * limits.eps) + norms.double() * limits.smallest_normal * limits.eps


def check_factor(function: str, form: Form, bounds: Sequence[float], gamma: float) -> None:
    """Try a clipping function at the bounds in use.

    Guarantee: over `grid`, each factor is a finite number >= 0 with factor x norm <= bound, to the rounding of its dtype. A grid
    is no proof: between its norms the function must be trusted.

    Raises:
        DpbenchError: A factor breaks this. The message names the function, a norm and the bound.
    """
    with _disable_current_modes(), torch.device("cpu"):  # on real numbers, also while a step without values is simulated
        for bound in dict.fromkeys(bounds):
            for dtype in _DTYPES:
                _check(function, form, bound, gamma, dtype)


def _check(function: str, form: Form, bound: float, gamma: float, dtype: torch.dtype) -> None:
    norms = grid(bound, dtype)
    factors = form(norms.clone(), bound, gamma)
    if not isinstance(factors, Tensor) or factors.shape != norms.shape:
        shape = list(factors.shape) if isinstance(factors, Tensor) else type(factors).__name__
        raise DpbenchError(f"clipping function {function!r} gives {shape} for norms [{len(norms)}]", "give one factor a norm")
    products = factors.double() * norms.double()
    valid = torch.isfinite(factors) & (factors >= 0) & (products <= allowed(norms, bound))
    if not valid.all():
        index = int((~valid).nonzero()[0])
        raise DpbenchError(
            f"clipping function {function!r} breaks its bound: at norm {norms[index].item():.6g} and bound {bound:g} "
            f"its factor is {factors[index].item():.6g}, and {_violation(products[index].item(), bound)}",
            "a factor is a finite number >= 0 with factor x norm <= bound, for every norm; dpbench.privacy.clipping.numbers has "
            "`representable` for what is too large or too small for its dtype",
        )


def _violation(product: float, bound: float) -> str:
    if not math.isfinite(product) or product <= bound:
        return "not a finite number >= 0"
    return f"factor x norm {product:.6g}"
