"""The base of every engine, ours and the peers'; see `dpbench.methods.protocol`.

The release is in a hook on the optimizer, so `optimizer.step()` makes the same step as `method.step()`, without its report.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import Factor, Sums
from dpbench.methods.engines.batches import Batch, Losses, batch_size, select, versions_of, without_padding
from dpbench.methods.engines.exchange import Exchange, Tally
from dpbench.methods.engines.guard import Guard, Witness, claim, trainable_of, unclaim
from dpbench.methods.engines.layers import Layer, Layout, check_examples_apart, lay_out
from dpbench.methods.engines.probes import has_values
from dpbench.methods.engines.rescue import Doubts, Norms, scales_all
from dpbench.methods.engines.resuming import Resumable
from dpbench.methods.engines.stepping import Arguments, Options, Report, after_closure, check_unscaled
from dpbench.methods.engines.thresholds import Thresholds
from dpbench.methods.engines.writes import check_no_known_writer
from dpbench.privacy.clipping.probe import check_factor
from dpbench.privacy.mechanism import Clipping, Mechanism
from dpbench.privacy.noise import Noise


class NonFiniteStep(DpbenchError):
    """Every example of a step without noise had a non-finite gradient."""


class Handle(Resumable):
    """An attached engine: a `Method`, and what its helpers need. Subclasses implement `_accumulate`.

    bounds: The bounds C_k of the groups. unprotected: Trainable tensors outside every group (always empty: attaching refuses
    them). real: How many examples of the current physical batch count, None for all. name, scopes and adapts (whether it does
    adaptive thresholds) are those that the plug-in of a subclass declares.
    """

    name = ""
    scopes: tuple[str, ...] = ()
    adapts = False
    functions: tuple[str, ...] | None = None
    in_training_mode = True
    needs_layers = True
    captures = False  # whether gradients are captured from calls of modules
    rescues = False  # whether examples whose norm is beyond its dtype are clipped again, one by one
    tracks_reach = False  # whether `_reached` is filled with what the losses depend on

    def __init_subclass__(cls) -> None:
        if (plugin := vars(sys.modules[cls.__module__]).get("PLUGIN")) is not None:
            cls.name, cls.scopes, cls.adapts = plugin["name"], tuple(plugin["scopes"]), plugin.get("adaptive", False)

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        mechanism: Mechanism,
        kernels: str = "auto",
        globalize_layout: Callable[[Layout], Layout] | None = None,
    ) -> None:
        self.model, self.optimizer, self.mechanism, self.kernels = model, optimizer, mechanism, kernels
        self._globalize_layout = globalize_layout
        self.steps = 0
        self.trainable = trainable_of(model, optimizer)
        self.guard = Guard(model, optimizer, self.trainable)
        self._reached: set[int] = set()
        self._noted: list[Norms] | None = None  # norms of the current physical batch, while they can still be corrected
        self._doubts = Doubts(self)  # the last physical batches, whose norms the device may not have computed yet
        self._has_values = has_values(model)
        self._sums: dict[int, Tensor] = {}
        self.exchange = Exchange()
        self._tally = Tally()
        self._losses: list[Tensor] = []
        self._counts: list[Tensor] = []  # clipped, finite and non-finite examples, left on the device until the step ends
        self._bounds: dict[tuple[Any, ...], Tensor] = {}
        self.real: int | None = None
        self.clipped_fraction: float | None = None
        self.non_finite_examples = 0
        self.layout: Layout | None = None
        self.bounds: list[float] = []
        self.sensitivity = float("inf")
        self.noise_stds: dict[int, float] = {}
        if mechanism.clipping is not None:
            self._prepare_clipping()
        self._witness: Witness | None = None
        claim(optimizer, self)
        self.draw_noise_as(rank=0)
        self._hooks = [
            optimizer.register_step_pre_hook(self._step_hook),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def _prepare_clipping(self) -> None:
        clipping = self.clipping
        if clipping.scope not in self.scopes:
            raise DpbenchError(f"engine {self.name!r} does not do {clipping.scope} clipping", f"it does {', '.join(self.scopes)}")
        if self.functions is not None and clipping.function not in self.functions:
            raise DpbenchError(f"engine {self.name!r} does not do {clipping.function}", f"it does {', '.join(self.functions)}")
        if clipping.adaptive is not None and not self.adapts:
            able = ", ".join(n for n, plugin in plugins.discover("engine").items() if plugin.extra.get("adaptive"))
            raise DpbenchError(f"engine {self.name!r} does not do adaptive thresholds", f"these do: {able}")
        self._function = plugins.get("function", clipping.function).load()
        check_examples_apart(self.model)
        check_no_known_writer(self.model)
        if not self.needs_layers and clipping.scope == "flat":  # needs no layout, so any parameter is protected
            self._set_bounds(["all"], [0])
            return
        local_layout = self._lay_out()
        self.layout = layout = local_layout if self._globalize_layout is None else self._globalize_layout(local_layout)
        self._set_bounds(layout.labels, sorted({cluster.group for cluster in layout.clusters}))

    @property
    def clipping(self) -> Clipping:
        """The clipping, of a mechanism that has one."""
        assert self.mechanism.clipping is not None
        return self.mechanism.clipping

    def _lay_out(self) -> Layout:
        return lay_out(self.model, self.clipping, self.kernels, stage=self._globalize_layout is not None, capture=self.captures)

    def _set_bounds(self, labels: list[str], local_groups: list[int]) -> None:
        """Set bounds, sensitivity and noise of all groups, of which this process may hold a part."""
        self.bounds = self.clipping.bounds(len(labels), labels)
        check_factor(self.clipping.function, self._function.factor, self.bounds, self.clipping.gamma)
        self._doubts.small = scales_all(self.factor(0))
        if self.clipping.adaptive is not None:
            self.thresholds = Thresholds(self.mechanism, labels, local_groups, self.bounds)
        self._set_noise()

    def _set_noise(self) -> None:
        """Set sensitivity and the noise std of every tensor.

        Raises:
            DpbenchError: A trainable tensor belongs to no group. The message names it.
        """
        noise_multiplier = self.mechanism.gradient_noise_multiplier
        if self.layout is None:
            self.sensitivity = self.bounds[0]
            self.noise_stds = {id(p): noise_multiplier * self.bounds[0] for p in self.trainable.values()}
            return
        self.sensitivity, self.noise_stds = self.layout.noise(self.bounds, noise_multiplier, self.clipping.allocation)
        if missing := [name for name, p in self.trainable.items() if id(p) not in self.noise_stds]:
            raise DpbenchError(
                f"parameter {missing[0]} belongs to no group: it would be unprotected", "freeze it, or put it in a leaf module"
            )

    def draw_noise_as(self, rank: int) -> None:
        """Use the noise of a rank of a group; 0 is that of a single process."""
        self.noise = Noise(self.mechanism, rank, self.kernels, on=[self.model, self.optimizer, *self.trainable.values()])

    # the protocol of methods

    @property
    def groups(self) -> int:
        return len(self.bounds)

    @property
    def unprotected(self) -> list[str]:
        """The names of trainable tensors that no group protects."""
        if self.mechanism.clipping is None:
            return []
        return [name for name, p in self.trainable.items() if id(p) not in self.noise_stds]

    def backward(self, losses: Losses, batch: Batch, real: int | None = None) -> Tensor:
        """Add the bounded gradients of one physical batch to the step's sum, and return the detached losses [B].

        Args:
            real: Only the first `real` examples count; the others are padding, for processes that must all run the same passes.

        Guarantee: each example adds at most C_k in L2 to group k, and a non-finite one or padding adds 0.

        Raises:
            DpbenchError: The loss is not one value an example, or a module's input does not have the batch first.
        """
        if not self.exchange.keeps_padding:
            if real is not None:
                batch, real = select(batch, slice(real)), None
            if batch_size(batch) == 0:
                return torch.zeros(0)
        self.real = real
        counted = losses if real is None else without_padding(losses, real)
        if self.mechanism.clipping is None:
            values = self._accumulate(counted, batch)[:real]
        else:
            self.guard.check_trained_set()
            changed = self.guard.structure_changed()
            with self.guard.state:
                if self._looks:
                    self._look(losses, batch, changed)
                self._noted = [] if self.rescues and self._looks and self.clipping.tied != "per_use" else None
                versions = versions_of(batch)
                values = self._accumulate(counted, batch)[:real]
                if self.rescues and versions_of(batch) != versions:
                    raise DpbenchError(
                        "the forward pass changes its batch in place: another pass over it would get another result",
                        "make that operation out of place, or use the engine 'loop'",
                    )
                if self._noted:
                    self._doubts.add(losses, batch, self._noted)
                self._noted = None
            for norms in self._doubts.settled():
                self._count(norms)
        self.record_examples(values)
        return values

    def step(self) -> Report:
        losses = self._losses
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Report(losses, self.clipped_fraction, {} if self.thresholds is None else self.thresholds.last)

    def before_release(self, check: Callable[[int], None]) -> None:
        """Register `check` in a hook after the engine's, when the examples of all processes are known and no weight has moved."""
        self._hooks.append(self.optimizer.register_step_pre_hook(lambda *_: check(self.counted().examples)))

    def warnings(self) -> list[str]:
        ignored = self.non_finite_examples
        return [f"{ignored} examples had non-finite gradients and contributed 0"] if ignored else []

    @property
    def _looks(self) -> bool:
        """Whether the model can be examined by additional passes: in one process, and with values in it."""
        return not self.exchange.keeps_padding and self._has_values

    def _look(self, losses: Losses, batch: Batch, changed: bool) -> None:
        """Examine the model on a few examples before a batch is added to a sum.

        Args:
            changed: Whether its structure, modes or trained tensors differ from those at the last batch; True at the first.

        Raises:
            DpbenchError: Something breaks the guarantee. The message names it.
        """

    def _accumulate(self, losses: Losses, batch: Batch) -> Tensor:
        raise NotImplementedError

    def record_examples(self, losses: Tensor, examples: int | None = None) -> None:
        """Count the examples of a physical batch by their losses [B], or as `examples` where another process has the losses."""
        self._losses.append(losses)
        self._tally.examples += len(losses) if examples is None else examples

    def epsilon(self) -> float | None:
        """Return epsilon so far (PLD); None for a non-private run."""
        return self.mechanism.epsilon(self.steps)

    def detach(self) -> None:
        """Remove every trace from model and optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._sums, self._losses = {}, []
        self._doubts.clear()
        unclaim(self.optimizer, self)

    # the two halves of `_accumulate`, for a pipeline; engines that declare to run as stages have them

    def forward_of(self, call: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """Call `call()`, and return an open pass, which holds what the backward pass needs, and the output [B, ...]."""
        raise NotImplementedError

    def backward_of(
        self, open_pass: Any, outputs: Tensor, gradients: Tensor | None = None, inputs: Sequence[Tensor] = ()
    ) -> list[Tensor | None]:
        """Add the bounded gradients of an open pass to the step's sum, and return those of `inputs`.

        Args:
            outputs: The sum of the losses, or a stage's output, with its `gradients` from the next stage.
        """
        raise NotImplementedError

    def flush_deferred(self) -> None:
        """Clip the gradients that wait for the other processes' norms; called by all after the last pass of a physical batch."""

    # for engines

    def factor(self, group: int) -> Factor:
        """Return the map from norms to factors of one group, with the mechanism's function, bound and gamma."""
        return Factor(self.clipping.function, self.bounds[group], self.clipping.gamma, self._function.factor)

    def bounds_of(self, groups: list[int], device: torch.device) -> Tensor:
        """Return the [K] bounds of some groups on a device. They are sent once, as a copy from pageable memory waits for it."""
        key = (device, *(self.bounds[k] for k in groups))
        if key not in self._bounds:
            self._bounds = {key: torch.tensor(key[1:], device=device)}
        return self._bounds[key]

    def sum_of(self, parameter: Tensor) -> Tensor:
        """Return the running sum of a parameter's bounded gradients, which is allocated and zeroed at the first call."""
        if id(parameter) not in self._sums:
            self._sums[id(parameter)] = self.exchange.new_sum(parameter).zero_()
        return self._sums[id(parameter)]

    def sums_of(self, layer: Layer) -> Sums:
        """Return the running sums of a layer's parameters. Those allocated in this call are fresh, that is, not yet written."""
        fresh = [name for name, p in layer.parameters.items() if id(p) not in self._sums]
        for name in fresh:
            parameter = layer.parameters[name]
            self._sums[id(parameter)] = self.exchange.new_sum(parameter)
        return Sums({name: self._sums[id(p)] for name, p in layer.parameters.items()}, fresh)

    def pop_sum(self, parameter: Tensor) -> Tensor | None:
        """Return the running sum of a parameter and forget it; None if there is none."""
        return self._sums.pop(id(parameter), None)

    def count(self, norms: Tensor, bounds: Tensor | float, groups: Sequence[int] | None = None) -> None:
        """Note norms [B] or [B, K] of `groups` (None: all of this process) for the step's counts, without waiting."""
        batch_norms = Norms((norms[:, None] if norms.dim() == 1 else norms)[: self.real], bounds, groups)
        if self._noted is not None:
            self._noted.append(batch_norms)
        else:
            self._count(batch_norms)

    def _count(self, batch_norms: Norms) -> None:
        norms, bounds, groups = batch_norms.norms, batch_norms.bounds, batch_norms.groups
        finite = torch.isfinite(norms)
        over, all_finite = ((norms > bounds) & finite).any(1), finite.all(1)
        self.exchange.record_examples(over, all_finite)
        self._counts.append(torch.stack([over.sum(), all_finite.sum(), (~all_finite).sum()]))
        if self.thresholds is not None:
            self.thresholds.note(norms <= bounds, groups)

    def counted(self) -> Tally:
        """Return the tally of this process' examples in the step so far; waits for the device."""
        for norms in self._doubts.settled(wait=True):
            self._count(norms)
        if self._counts:
            counts = torch.stack([count.to(self._counts[0].device) for count in self._counts]).sum(0)
            self._counts = []
            clipped, finite, non_finite = (int(n) for n in counts.tolist())
            tally = self._tally
            self._tally = Tally(tally.examples, tally.clipped + clipped, tally.non_finite + non_finite, tally.finite + finite)
        return self._tally

    def _step_hook(self, optimizer: torch.optim.Optimizer, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        """Release the step's sum, after a closure has been run, which may call `backward`."""
        args, kwargs = after_closure(args, kwargs)
        check_unscaled(optimizer)
        self._before_step()
        return args, kwargs

    def _before_step(self) -> None:
        if self.mechanism.clipping is not None:
            self.guard.check_trained_set()
        reached = self._reached if self.tracks_reach and self.mechanism.clipping is not None else set()
        fault = self.beyond_the_end() or self.guard.fault(reached)
        self._tally = tally = self.exchange.total(self.counted(), self.steps, fault)
        # Under noise an abort would reveal private data: a step without a finite example is a step of noise.
        if tally.non_finite and not tally.finite and self.mechanism.noise_multiplier == 0:
            raise NonFiniteStep(
                f"step {self.steps + 1}: all {tally.non_finite} examples have non-finite gradients",
                "lower the learning rate, or use a wider dtype",
            )
        if self.mechanism.noise_multiplier > 0 and self.steps == 0:
            self._witness = Witness(self.trainable)
        self._release()
        self._sums = {}

    def _release(self) -> None:
        """Set every parameter's grad to (sum + noise) / expected_batch_size.

        Guarantee: noise of std noise_multiplier x sensitivity (as allocated) is added once a step, also to an empty sum.
        """
        sums = [(self.exchange.summed(self, p), self.noise_stds.get(id(p), 0.0)) for p in self.trainable.values()]
        with torch.no_grad():
            self.exchange.release_(self, sums, self.mechanism.sampling.expected_batch_size)
        for parameter, (total, _) in zip(self.trainable.values(), sums, strict=True):
            parameter.grad = self.exchange.gradient(parameter, total)

    def _after_step(self) -> None:
        self.steps += 1
        tally, self._tally = self._tally, Tally()
        self._losses = []
        self.clipped_fraction = tally.clipped / tally.examples if tally.examples else None
        self.non_finite_examples += tally.non_finite
        if self.thresholds is not None:
            self.bounds = self.thresholds.move(lambda counts, std: self.exchange.release_counts(self, counts, std))
            self._set_noise()
        if self._witness is not None:
            self._witness.check(self.optimizer)
            self._witness = None

    # for Resumable

    def _in_a_step(self) -> bool:
        return bool(self._sums or self._doubts or self._counts or self._tally != Tally())

    def _go_on_from(self, bounds: list[float]) -> None:
        self.bounds = bounds
        self._set_noise()
