"""The shared parts of both Opacus adapters."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from dpbench.errors import DpbenchError
from dpbench.methods.engines.base import Handle


def require() -> str:
    """Return the version of Opacus, or raise an error that says how to install it."""
    try:
        import opacus
    except ImportError as error:
        raise DpbenchError("opacus is not installed", "pip install opacus") from error
    register_conv1d()
    # Opacus registers full backward hooks on the embedding, which has no input gradient; torch warns of that at every step.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    return opacus.__version__


def register_conv1d() -> None:
    """Register with Opacus the transposed linear layer of transformers' GPT-2, as Opacus registers `nn.Linear`.

    Without this it uses the generic way by `torch.func`, which would make the peer look slower than it is.
    """
    from opacus.grad_sample import register_grad_sampler, register_norm_sampler
    from transformers.pytorch_utils import Conv1D

    def transposed(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
        x = activations[0].to(backprops.dtype)
        gradients = {}
        if layer.weight.requires_grad:
            gradients[layer.weight] = torch.einsum("n...i,n...j->nij", x, backprops)
        if layer.bias.requires_grad:
            gradients[layer.bias] = torch.einsum("n...k->nk", backprops)
        return gradients

    def transposed_norm(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
        x = activations[0].to(backprops.dtype)
        norms = {}
        x, g = x.reshape(len(x), -1, x.shape[-1]), backprops.reshape(len(x), -1, backprops.shape[-1])
        if layer.weight.requires_grad:
            gram = torch.einsum("nik,njk->nij", g, g), torch.einsum("nik,njk->nij", x, x)
            norms[layer.weight] = torch.sqrt(torch.einsum("n...i,n...i->n", *gram).clamp(min=0))
        if layer.bias.requires_grad:
            norms[layer.bias] = torch.sqrt(torch.einsum("n...i->n", torch.einsum("nik,njk->nij", g, g)).clamp(min=0))
        return norms

    register_grad_sampler(Conv1D)(transposed)
    register_norm_sampler(Conv1D)(transposed_norm)


class OpacusHandle(Handle):
    """An engine of flat Abadi clipping by Opacus, whose optimizer wrapper clips, sums and adds the noise."""

    functions = ("abadi",)
    needs_layers = False
    _gradients: Any
    """Opacus' hooks on the model, set by `_wrap`."""
    _dp: Any
    """Opacus' wrapper of the optimizer, set by `_wrap`."""

    def _prepare_clipping(self) -> None:
        require()
        super()._prepare_clipping()
        if not self.model.training:
            raise DpbenchError(f"engine {self.name!r} needs the model in training mode", "call model.train() before attaching")
        self._wrap()

    def _wrap(self) -> None:
        raise NotImplementedError

    def _wrapper_options(self) -> dict[str, Any]:
        return {
            "noise_multiplier": self.mechanism.noise_multiplier,
            "max_grad_norm": self.clipping.bound,
            "expected_batch_size": self.mechanism.sampling.expected_batch_size,
            "loss_reduction": "sum",  # divided in _release: Opacus would use the per-example gradients, which are deleted by then
            "generator": None,
        }

    def _before_step(self) -> None:
        device = next(iter(self.trainable.values())).device
        self._dp.generator = self.noise.generator(device)
        super()._before_step()

    def _release(self) -> None:
        """Have Opacus add the noise, and divide the result."""
        parameters: list[Any] = list(self.trainable.values())
        for parameter in parameters:
            if parameter.summed_grad is None:  # an empty batch: noise alone
                parameter.summed_grad = torch.zeros_like(parameter)
        self._dp.add_noise()
        for parameter in parameters:
            parameter.grad.div_(self.mechanism.sampling.expected_batch_size)

    def _after_step(self) -> None:
        for parameter in self.trainable.values():
            parameter.summed_grad = None  # type: ignore[attr-defined]
        super()._after_step()

    def detach(self) -> None:
        self._gradients.cleanup()
        self._forget()
        super().detach()

    def _forget(self) -> None:
        """Remove the attributes Opacus leaves on parameters and modules."""
        for parameter in self.model.parameters():
            for name in ("grad_sample", "summed_grad", "_norm_sample", "_forward_counter", "_current_grad_sample"):
                if hasattr(parameter, name):
                    delattr(parameter, name)
        for module in self.model.modules():
            for name in ("activations", "max_batch_len", "ft_compute_sample_grad"):
                if hasattr(module, name):
                    delattr(module, name)
