"""fastDP (Bu et al., awslabs/fast-differential-privacy): book-keeping with its mixed ghost norm. The noise is dpbench's.

fastDP draws its noise when it begins a sum. Here dpbench forms the sums over physical batches, and therefore adds the noise.
"""

from __future__ import annotations

import contextlib
import io
import warnings

from torch import Tensor

from dpbench.errors import DpbenchError
from dpbench.methods.engines.base import Handle
from dpbench.methods.engines.batches import Batch, Losses, check_losses

PLUGIN = {
    "kind": "engine",
    "name": "fastdp",
    "version": 1,
    "summary": "fastDP's book-keeping, mixed ghost norm",
    "private": True,
    "scopes": ["flat", "per_layer"],
    "package": "fastDP",
    "get": "pip install git+https://github.com/awslabs/fast-differential-privacy",
    "limits": {
        "functions": "this adapter asks fastDP for Abadi clipping",
        "tied": "fastDP clips each use of a tied tensor separately, so tied and repeated layers are refused",
        "half": "fastDP sums clipped gradients in the gradients' dtype",
        "bad_example": "fastDP multiplies a non-finite gradient by its factor, so that the step is not finite",
    },
}

_STYLES = {"flat": "all-layer", "per_layer": "layer-wise"}
_ON_PARAMETERS = ("private_grad", "initially_requires_grad", "batch_size", "noise", "norm_sample", "grad_sample")
_ON_MODULES = ("activations", "backprops", "use_gc", "privacy_engine", "get_privacy_spent", "get_training_stats")


class Engine(Handle):
    """The peer fastDP in its default mode `MixOpt`, which decides on ghost norms at the first batch and keeps that decision."""

    functions = ("abadi",)

    def _prepare_clipping(self) -> None:
        try:
            from fastDP import PrivacyEngine
            from fastDP.supported_layers_grad_samplers import _supported_layers_norm_sample_AND_clipping as supported
        except ImportError as error:
            raise DpbenchError("fastDP is not installed", str(PLUGIN["get"])) from error
        super()._prepare_clipping()
        assert self.layout is not None
        for layer in self.layout.layers:
            if type(layer.module) not in supported:
                raise DpbenchError(f"fastDP has no rule for {layer.name} ({type(layer.module).__name__})", "use another engine")
        if self.layout.shared or any(len(cluster.layers) > 1 for cluster in self.layout.clusters):
            raise DpbenchError(
                "fastDP clips each use of a tied tensor separately and adds them", "untie it, or use another engine"
            )
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self._engine = PrivacyEngine(
                self.model,
                batch_size=1,
                sample_size=self.mechanism.sampling.dataset_size,
                num_steps=self.mechanism.steps,
                max_grad_norm=self.clipping.bound,
                noise_multiplier=0.0,
                clipping_fn="Abadi",
                clipping_style=_STYLES[self.clipping.scope],
                loss_reduction="sum",
            )

    def _accumulate(self, losses: Losses, batch: Batch) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using a non-full backward hook")
            values = check_losses(losses(self.model, batch))
            if len(values) == 0:
                return values.detach()
            values.sum().backward()
        for name, parameter in self.trainable.items():
            parameter.grad = None
            if not hasattr(parameter, "private_grad"):
                raise DpbenchError(f"fastDP has not clipped {name}", "see that the layer is used once in every forward pass")
            self.sum_of(parameter).add_(parameter.private_grad)
            del parameter.private_grad
        return values.detach()

    def detach(self) -> None:
        from fastDP import autograd_grad_sample

        autograd_grad_sample.remove_hooks(self.model)
        for parameter in self.model.parameters():
            _forget(parameter, _ON_PARAMETERS)
        for module in self.model.modules():
            _forget(module, _ON_MODULES)
        super().detach()


def _forget(holder: object, names: tuple[str, ...]) -> None:
    for name in names:
        if name in vars(holder):
            delattr(holder, name)
