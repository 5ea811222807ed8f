"""Settings that every training run has: method, clipping, privacy budget, optimizer. No torch before an optimizer is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dpbench import methods, plugins
from dpbench.errors import DpbenchError
from dpbench.execution.contract import metric
from dpbench.privacy.accounting import TOLERANCE
from dpbench.privacy.clipping.adaptive import Adaptive
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling, calibrated
from dpbench.records.privacy import privacy_of
from dpbench.records.schema import Metric, Privacy
from dpbench.validation import Strict, omitted

if TYPE_CHECKING:
    from torch.optim import Optimizer


class AdaptiveSettings(Strict):
    """Thresholds that follow a quantile of the norms, see dpbench.privacy.clipping.adaptive.Adaptive."""

    quantile: float = Field(gt=0, lt=1)
    rate: float = Field(0.3, gt=0, allow_inf_nan=False)
    budget: float = Field(0.01, gt=0, lt=1)
    rescale: bool = False

    def build(self) -> Adaptive:
        return Adaptive(**self.model_dump())


class ClippingSettings(Strict):
    """How gradients are bounded, see dpbench.privacy.mechanism.Clipping. What is left out is not part of a run's name."""

    function: str
    scope: str = "flat"
    bound: float = 1.0
    gamma: float = 0.01
    allocation: Literal["global", "equal", "weighted"] = omitted("global")
    devices: int | None = omitted(ge=1, description="Virtual devices of scope per_device.")
    thresholds: list[float] | dict[str, float] | None = omitted(
        description="Thresholds, one a group in order or by its label, instead of a bound."
    )
    adaptive: AdaptiveSettings | None = omitted()

    @model_validator(mode="after")
    def _one_bound(self) -> ClippingSettings:
        if self.thresholds is not None and self.bound != 1.0:
            raise ValueError(f"bound {self.bound:g} beside thresholds: their hypotenuse is the bound")
        return self

    @model_validator(mode="after")
    def _can_be_built(self) -> ClippingSettings:
        if self.devices is not None or self.thresholds is not None or self.adaptive is not None:
            try:
                self.build(bound=1.0)
            except DpbenchError as error:
                raise ValueError(f"{error.what} ({error.hint})") from error
        return self

    def build(self, bound: float | None = None, groups: int = 1) -> Clipping:
        """Return the mechanism's clipping.

        Args:
            bound: instead of that of the settings; groups: K of the model under the scope, where the bound depends on it.
        """
        same = {name: getattr(self, name) for name in ("function", "scope", "gamma", "allocation", "devices", "thresholds")}
        adaptive = self.adaptive.build() if self.adaptive is not None else None
        return Clipping(bound=self.total_bound(groups) if bound is None else bound, adaptive=adaptive, **same)

    def total_bound(self, groups: int) -> float:
        """Return the L2 bound of an example's full gradient, in K groups."""
        return self.bound


class ZerothSettings(Strict):
    """What a zeroth-order method needs beside a mechanism: lambda, and the law of its directions."""

    perturbation: float = Field(1e-3, gt=0, le=1)
    directions: Literal["gaussian", "sphere"] = "gaussian"


class OptimizerSettings(Strict):
    """How the released gradient is used.

    head_learning_rate: of the head alone; None: the same. by_bound: keep the learning rate times the total bound, whatever
    adaptive thresholds do: it falls as they grow. cosine: after `warmup_steps` of linear growth, down to `min_learning_rate` at
    the last step. gradient_clip: the released gradient is brought to at most this L2 norm; it follows the noise and costs no
    privacy.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(gt=0)
    head_learning_rate: float | None = omitted(gt=0)
    momentum: float = omitted(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    min_learning_rate: float = omitted(0.0, ge=0)
    warmup_steps: int = omitted(0, ge=0)
    by_bound: bool = omitted(False)
    gradient_clip: float | None = omitted(gt=0)

    @model_validator(mode="after")
    def _fits_its_name(self) -> OptimizerSettings:
        if self.name != "sgd" and (self.momentum or self.by_bound):
            raise ValueError(f"{'momentum' if self.momentum else 'by_bound'} is a setting of sgd")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate:g} is above learning_rate {self.learning_rate:g}")
        if self.schedule != "cosine" and (self.min_learning_rate or self.warmup_steps):
            key = "min_learning_rate" if self.min_learning_rate else "warmup_steps"
            raise ValueError(f"{key} belongs to schedule: cosine, and this one is {self.schedule}")
        if self.schedule == "cosine" and self.by_bound:
            raise ValueError("by_bound: for a constant or a linear schedule")
        return self

    def build(self, groups: Sequence[dict[str, Any]]) -> Optimizer:
        """Return the optimizer of some parameter groups, which may name their learning rate and weight decay."""
        import torch

        groups = [group for group in groups if group["params"]]
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)

    def rate(self, base: float, step: int, steps: int, scale: float = 1.0) -> float:
        """Return the learning rate of step 0, 1, ... of `steps`.

        Args:
            base: the largest one, of a parameter group; scale: what it is multiplied by beside the schedule.
        """
        if self.schedule == "constant":
            return base * scale
        if self.schedule == "linear":
            return base * ((1 - step / steps) * scale)
        if step < self.warmup_steps:
            return base * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, steps - 1 - self.warmup_steps)
        lowest = self.min_learning_rate
        return lowest + (base - lowest) * (1 + math.cos(math.pi * share)) / 2


def check_spent(plan: Mechanism, epsilon: float) -> Mechanism:
    """Return `plan`, once it is known to spend the epsilon that was asked for.

    A mechanism calibrated for other rows, steps or batches than it is run on spends more, or wastes noise.

    Raises:
        DpbenchError: it spends more than `epsilon`, or more than 1 % less.
    """
    spent = plan.epsilon()
    if spent is None or not epsilon * (1 - TOLERANCE) <= spent <= epsilon * (1 + 1e-9):
        what = f"the mechanism spends epsilon {'none' if spent is None else f'{spent:.4g}'}, where {epsilon:g} was asked for"
        raise DpbenchError(what, "report this: it was calibrated for something else than it is run on")
    return plan


class TrainingSettings(Strict):
    """The settings of a training run beside those of its task. `delta` may depend on n, the dataset's training rows."""

    kinds: ClassVar[tuple[str, ...]] = ("engine",)
    """Kinds of methods that the run takes, see dpbench.methods.KINDS."""

    method: str
    clipping: ClippingSettings | None = None
    epsilon: float | None = Field(None, gt=0)
    delta: float | Literal["1/(2n)", "n^-1.1"] = 1e-5
    relation: Literal["add_or_remove", "replace_one"] = "add_or_remove"
    sampler: Literal["poisson", "fixed"] = "poisson"
    steps: int = Field(ge=1)
    expected_batch_size: float = Field(gt=0)
    accounted_rows: int | None = omitted(ge=1, description="n that the noise is calibrated for, if not the n there is.")
    caveats: list[str] = Field(default_factory=list, description="Reasons for which epsilon is only nominal.")
    optimizer: OptimizerSettings
    zeroth: ZerothSettings | None = omitted(description="Of a zeroth-order method, and only there.")
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _budget_belongs_to_the_method(self) -> TrainingSettings:
        if self.clips and (self.clipping is None or self.epsilon is None):
            raise ValueError(f"method {self.method} needs clipping and epsilon")
        if not self.clips and (self.clipping is not None or self.epsilon is not None):
            raise ValueError(f"method {self.method} takes neither clipping nor epsilon")
        return self

    @model_validator(mode="after")
    def _belong_together(self) -> TrainingSettings:
        if self.by_zeroth != (self.zeroth is not None):
            raise ValueError(
                f"zeroth: {self.method} " + ("is no zeroth-order method" if self.zeroth else "needs it, if only as {}")
            )
        optimizer = self.optimizer
        if self.zeroth is not None and (optimizer.name != "sgd" or optimizer.weight_decay or optimizer.momentum):
            raise ValueError(f"{self.method} is SGD along a direction: optimizer name sgd, without weight decay")
        if self.zeroth is not None and optimizer.head_learning_rate is not None:
            raise ValueError(f"{self.method} moves all weights along one direction: it has one learning rate")
        if optimizer.by_bound and self.clipping is None:
            raise ValueError("by_bound needs clipping: without it there is no bound")
        if self.steps == 0 and self.method != "nonprivate":
            raise ValueError(f"steps: 0 trains nothing, so {self.method} has nothing to do: method nonprivate")
        return self

    @property
    def plugin(self) -> plugins.Plugin:
        """The plug-in that `method` names.

        Raises:
            DpbenchError: none of the kinds that the run takes.
        """
        return methods.find(self.method, self.kinds)

    @property
    def clips(self) -> bool:
        """Whether the method bounds what an example adds; published code does so in its way, though nothing is private."""
        extra = self.plugin.extra
        return bool(extra["scopes"]) if self.plugin.kind == "published_engine" else bool(extra["private"])

    @property
    def by_zeroth(self) -> bool:
        """Whether the method is a zeroth-order one."""
        return self.plugin.kind in ("zeroth", "published_zeroth")

    @property
    def functional(self) -> bool:
        """Whether torch.func traces the losses, so that they may not depend on a tensor's values."""
        return bool(self.plugin.extra.get("functional"))

    @property
    def deciding_plugins(self) -> list[tuple[str, str]]:
        """Kind and name of the plug-ins whose version is part of a run's name."""
        clipping, names = self.clipping, [(self.plugin.kind, self.method)]
        if clipping is not None:
            names += [("function", clipping.function), ("scope", clipping.scope)]
            names += [("threshold", "adaptive")] if clipping.adaptive is not None else []
        return names

    @property
    def without_effect(self) -> list[str]:
        """Warnings of settings that nobody reads."""
        clipping, warnings = self.clipping, []
        usual = ClippingSettings.model_fields["gamma"].default  # `model_fields_set` says nothing: a run names every setting
        if clipping is not None and clipping.function != "auto_s" and clipping.gamma != usual:
            warnings.append(f"gamma has no effect under {clipping.function}")
        if clipping is not None and clipping.function != "abadi" and clipping.bound != 1 and clipping.adaptive is None:
            what = f"bound {clipping.bound:g} has no effect under {clipping.function}"
            warnings.append(f"{what} but to multiply SGD's learning rate")
        return warnings

    def mechanism(self, rows: int, kept: int, seed: int, groups: int = 1) -> Mechanism:
        """Return the one object that sampler, noise and accountant are built from.

        Args:
            rows: of the dataset, for delta; kept: rows that can be drawn.
            groups: K, that the clipping's scope makes of the model.

        Raises:
            DpbenchError: no noise multiplier reaches epsilon, or the result of the calibration spends another epsilon.
        """
        without_noise = self.without_noise(rows, kept, seed, groups)
        if self.clipping is None or self.epsilon is None:
            return without_noise
        if self.accounted_rows is None:
            return check_spent(calibrated(without_noise, self.epsilon), self.epsilon)
        accounted = replace(without_noise.sampling, dataset_size=self.accounted_rows)
        plan = calibrated(replace(without_noise, sampling=accounted), self.epsilon)
        return replace(plan, sampling=without_noise.sampling, target_epsilon=None)

    def without_noise(self, rows: int, kept: int, seed: int, groups: int = 1) -> Mechanism:
        """Return the mechanism before its noise is known; arguments as of `mechanism`."""
        delta = {"1/(2n)": 1 / (2 * rows), "n^-1.1": rows**-1.1}.get(str(self.delta)) or float(self.delta)
        sampling = Sampling(self.sampler, kept, min(self.expected_batch_size, kept))
        if self.clipping is None:
            return Mechanism(sampling, self.steps, delta=delta, seed=seed)
        return Mechanism(
            sampling,
            self.steps,
            self.clipping.build(groups=groups),
            delta=delta,
            relation=self.relation,
            seed=seed,
            caveats=tuple(self.caveats),
            noise=self.plugin.extra.get("noise") or "gaussian",
        )

    def mechanism_of(self, count: int) -> Mechanism | None:
        """Return the mechanism for a dry run, without noise where the number of rows is not known (0); None without steps."""
        if self.steps == 0:
            return None
        if count:
            return self.mechanism(count, count, 0)
        sampling = Sampling(self.sampler, int(self.expected_batch_size), self.expected_batch_size)
        return Mechanism(sampling, self.steps, self.clipping.build() if self.clipping else None)

    def privacy(self, plan: Mechanism, unprotected: Sequence[str] = ()) -> Privacy | None:
        """Return both accountants' epsilon, no finite one for published code; None for a non-private run.

        Args:
            unprotected: names of tensors that published code releases as they are.
        """
        stated, why = privacy_of(plan), self.plugin.extra.get("why")
        if self.plugin.kind == "published_engine":
            names = ", ".join(self.plugin.extra["deviations"])
            why = f"{names}: no finite epsilon, for {len(unprotected)} tensors are released without clipping and noise"
        if stated is None or why is None:
            return stated
        none = {"epsilon": None, "epsilon_rdp": None, "validity": "nominal", "reasons": [why, *plan.reasons]}
        return stated.model_copy(update=none)

    def epsilon_metrics(self, plan: Mechanism, privacy: Privacy | None) -> list[Metric]:
        """Return the real epsilon, `none` with the reason where there is no finite one, and the one that was asked for."""

        def none(why: str) -> Metric:
            return Metric(name="epsilon", value=None, text="none", unit="", note=why)

        if privacy is None:
            return [none("no clipping and no noise")]
        stated = metric("stated_epsilon", self.epsilon or 0.0, "")
        if privacy.epsilon is None:
            return [none(privacy.reasons[0] if plan.noise_multiplier > 0 else "no noise"), stated]
        spent = plan.epsilon_of_epochs() if plan.sampling.kind == "fixed" else privacy.epsilon
        return [Metric(name="epsilon", value=spent, unit=""), stated]
