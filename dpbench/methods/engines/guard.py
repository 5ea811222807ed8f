"""The checks that a private method makes of the model and the optimizer that it is attached to."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from dpbench.errors import DpbenchError
from dpbench.methods.engines.resuming import Resumable
from dpbench.methods.engines.writes import StateWatch

_ATTACHED: weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.ref[Resumable]] = weakref.WeakKeyDictionary()

_WITNESS = 64  # elements of each tensor kept to see that it moved
_TAKES_SCALES = "_step_supports_amp_scaling"

Structure = tuple[tuple[object, ...], ...]


class Guard:
    """Checks that the trained tensors are those that were protected, and tells when the model should be examined again.

    state: A context for forward passes, `with guard.state:`, in which they must not write into the model.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, trainable: dict[str, nn.Parameter]) -> None:
        self.state = StateWatch(model)
        self._model, self._optimizer = model, optimizer
        self._parameters = trainable
        self._trainable = {id(p): name for name, p in trainable.items()}
        self._structure: Structure | None = None

    def check_trained_set(self) -> None:
        """Check that the trained tensors of model and optimizer are those that were attached.

        Raises:
            DpbenchError: One was unfrozen, added, replaced or tied since. The message names it.
        """
        present = {id(p): name for name, p in self._model.named_parameters() if p.requires_grad}
        if present.keys() != self._trainable.keys():
            added = [name for key, name in present.items() if key not in self._trainable]
            gone = [name for key, name in self._trainable.items() if key not in present]
            what = f"{added[0]} is trained now and was not" if added else f"{gone[0]} is no longer what is trained"
            raise DpbenchError(
                f"{what} when the engine was attached: it has no bound and no noise",
                "freeze and tie layers first, or method.detach() and attach again",
            )
        self.check_optimizer()

    def check_optimizer(self) -> None:
        """Check that the optimizer steps on trained tensors of the model alone, and that no other tensor has a gradient.

        Raises:
            DpbenchError: A tensor was added to the optimizer since, or a frozen one has a gradient.
        """
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in self._trainable:
                    continue
                name = next((n for n, p in self._model.named_parameters() if p is parameter), f"a tensor {list(parameter.shape)}")
                if parameter.requires_grad:
                    raise DpbenchError(
                        f"{name} was added to the optimizer after the engine was attached: it has no bound and no noise",
                        "method.detach(), and attach again",
                    )
                if parameter.grad is not None:
                    raise DpbenchError(
                        f"{name} is frozen and has a gradient, which would be released without noise",
                        "set its grad to None, or take it out of the optimizer",
                    )

    def fault(self, reached: set[int]) -> DpbenchError | None:
        """Return why the sums of a step may not be released, or None.

        Args:
            reached: The ids of the trained tensors that the losses depend on; empty where they are not known.
        """
        for name, parameter in self._parameters.items():
            if parameter.grad is None or not parameter.grad.any():  # zero after zero_grad(set_to_none=False)
                continue
            return DpbenchError(
                f"{name} has a gradient from outside the engine: it would be released without noise",
                "call method.backward instead of loss.backward, and optimizer.zero_grad after each step",
            )
        for name, parameter in self._parameters.items() if reached else ():
            if id(parameter) not in reached:
                return DpbenchError(
                    f"no loss depends on {name}: it would be trained by noise alone",
                    "freeze it (requires_grad_(False)), or see that no detach or reentrant checkpoint cuts it off",
                )
        return None

    def structure_changed(self) -> bool:
        """Return whether modules, their modes, what they compute or the trained tensors have changed since the last call."""
        modules = tuple((id(m), m.training, id(vars(m).get("forward")), len(m._forward_pre_hooks)) for m in self._model.modules())
        structure = modules + tuple((id(p), p.requires_grad) for p in self._model.parameters())
        changed, self._structure = structure != self._structure, structure
        return changed


class Witness:
    """Some elements of each trained tensor, kept to check that it moves: under noise every one does in the first step."""

    def __init__(self, trainable: dict[str, nn.Parameter]) -> None:
        self._trainable = trainable
        self._before = {name: _some_of(p).clone() for name, p in trainable.items()}

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Check that every tensor with a learning rate has moved.

        Raises:
            DpbenchError: One has not. The message names it.
        """
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self._trainable.items():
            before = self._before[name]
            if rates[id(parameter)] > 0 and len(before) and torch.equal(before, _some_of(parameter)):
                raise DpbenchError(
                    f"{name} has not moved in the first step although it is trained under noise",
                    "see that the optimizer steps on the tensors of the model and that the dtype resolves the learning rate",
                )


def _some_of(parameter: Tensor) -> Tensor:
    """Return the first elements of a parameter on this process: none where its shard is empty."""
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.detach().reshape(-1)[:_WITNESS]


def trainable_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Return name -> parameter of everything that will be trained.

    Raises:
        DpbenchError: The optimizer and the model do not have the same trainable tensors, or one has no values yet.
    """
    if lazy := [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]:
        raise DpbenchError(f"{lazy[0]} has no shape yet (its layer is lazy)", "run the model on one batch before attaching")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    in_model = {id(p) for p in named.values()}
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    if stray := stepped - in_model:
        raise DpbenchError(
            f"the optimizer steps on {len(stray)} tensors that are not the model's", "build it from model.parameters()"
        )
    if idle := [name for name, p in named.items() if id(p) not in stepped]:
        raise DpbenchError(f"{idle[0]} is trainable but not in the optimizer", "add it, or freeze it")
    if not named:
        raise DpbenchError("the model has no trainable parameter", "call requires_grad_(True) on what is to be trained")
    return named


def claim(optimizer: torch.optim.Optimizer, handle: Resumable) -> None:
    """Note that a method releases the gradients of an optimizer.

    Raises:
        DpbenchError: Another method does, and has not been detached.
    """
    other = _ATTACHED.get(optimizer)
    attached = other() if other is not None else None
    if attached is not None:
        raise DpbenchError(
            f"engine {attached.name!r} is attached to this optimizer already: every step would be released twice",
            "call detach() on the first method before another is attached",
        )
    _ATTACHED[optimizer] = weakref.ref(handle)
    # With the mark a GradScaler calls `step`, which refuses it with a hint; otherwise it would fail an assertion.
    if not hasattr(optimizer, _TAKES_SCALES):
        setattr(optimizer, _TAKES_SCALES, True)


def unclaim(optimizer: torch.optim.Optimizer, handle: Resumable) -> None:
    """Forget what `claim` noted, if it was this method."""
    noted = _ATTACHED.get(optimizer)
    if noted is not None and noted() is handle:
        del _ATTACHED[optimizer]
        if _TAKES_SCALES in vars(optimizer):
            delattr(optimizer, _TAKES_SCALES)
