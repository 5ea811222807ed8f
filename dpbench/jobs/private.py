"""What the jobs that train to an epsilon share: their settings of engine, clipping and budget, and the mechanism made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from dpbench import plugins
from dpbench.accounting import TOLERANCE
from dpbench.composition import Composition
from dpbench.errors import DpbenchError
from dpbench.jobs.clipping import GroupSettings
from dpbench.jobs.contract import metric
from dpbench.mechanism import Clipping, Mechanism, Sampling, calibrated
from dpbench.records.schema import Metric, Privacy
from dpbench.validation import Strict


class ClippingSettings(GroupSettings):
    """See dpbench.mechanism.Clipping."""

    function: str
    scope: str = "flat"
    bound: float = 1.0
    gamma: float = 0.01

    @model_validator(mode="after")
    def _stands(self) -> ClippingSettings:
        if self.given is not None and self.bound != 1.0:
            raise ValueError(f"bound {self.bound:g} beside given thresholds: their hypotenuse is the bound")
        self.must_stand(function=self.function, scope=self.scope, gamma=self.gamma)
        return self

    def made(self) -> Clipping:
        """The mechanism's clipping."""
        return self.clipping_of(function=self.function, scope=self.scope, bound=self.bound, gamma=self.gamma)


def method_must_stand(settings: Any) -> None:
    """Of a job that takes zeroth-order methods: engine, `zeroth`, optimizer and steps belong together.

    Args:
        settings: PrivateSettings with those fields.

    Raises:
        ValueError: they do not; names what is wrong.
    """
    engine, zeroth = settings.engine, settings.zeroth
    if settings.by_zeroth != (zeroth is not None):
        raise ValueError(f"zeroth: {engine} " + ("is no zeroth-order method" if zeroth else "needs it, if only as {}"))
    if zeroth is not None and (settings.optimizer.name != "sgd" or settings.optimizer.weight_decay):
        raise ValueError(f"{engine} is SGD along a direction: optimizer name sgd, without weight decay")
    if settings.steps == 0 and engine != "nonprivate":
        raise ValueError(f"steps: 0 trains nothing, so {engine} has nothing to do: engine nonprivate")


NOISELESS = 0.05
"""Noise multiplier below which calibration stops: epsilon is then in the thousands, and less than was asked for."""


P = TypeVar("P", Mechanism, Composition)


def spends(plan: P, epsilon: float) -> P:
    """`plan`, once it is known to spend the epsilon that was asked for: a mechanism calibrated for other rows, steps or batches
    than it is run on spends more, or wastes noise.

    Raises:
        DpbenchError: it spends more than `epsilon`, or more than 1 % less.
    """
    spent = plan.epsilon()
    if (
        spent is None
        or spent > epsilon * (1 + 1e-9)
        or (spent < epsilon * (1 - TOLERANCE) and plan.noise_multiplier >= NOISELESS)
    ):
        what = f"the mechanism spends epsilon {'none' if spent is None else f'{spent:.4g}'}, where {epsilon:g} was asked for"
        raise DpbenchError(what, "report this: it was calibrated for something else than it is run on")
    return plan


class PrivateSettings(Strict):
    """The part of a job's settings that makes its mechanism. `delta` may depend on n, the dataset's training rows."""

    takes_zeroth: ClassVar[bool] = False

    engine: str
    clipping: ClippingSettings | None = None
    epsilon: float | None = Field(None, gt=0)
    delta: float | Literal["1/(2n)", "n^-1.1"] = 1e-5
    relation: Literal["add_or_remove", "replace_one"] = "add_or_remove"
    sampler: Literal["poisson", "fixed"] = "poisson"
    steps: int = Field(ge=1)
    expected_batch_size: float = Field(gt=0)
    accounted_rows: int | None = Field(
        None, ge=1, exclude_if=lambda v: v is None, description="n that the noise is calibrated for, if not the n there is."
    )
    caveats: list[str] = Field(default_factory=list, description="Reasons for which epsilon is only nominal.")

    @model_validator(mode="after")
    def _private_or_not(self) -> PrivateSettings:
        private = self.plugin.extra["private"]
        if private and (self.clipping is None or self.epsilon is None):
            raise ValueError(f"engine {self.engine} needs clipping and epsilon")
        if not private and (self.clipping is not None or self.epsilon is not None):
            raise ValueError(f"engine {self.engine} takes neither clipping nor epsilon")
        return self

    @property
    def plugin(self) -> plugins.Plugin:
        """What `engine` names: an engine or, where the job takes such, a zeroth-order method, ours or a paper's published one.

        Raises:
            DpbenchError: neither.
        """
        kinds = ("zeroth", "published_zeroth") if self.takes_zeroth else ()
        return plugins.get(next((k for k in kinds if self.engine in plugins.discover(k)), "engine"), self.engine)

    @property
    def by_zeroth(self) -> bool:
        """Whether it is a zeroth-order method."""
        return self.plugin.kind != "engine"

    @property
    def deciding_plugins(self) -> list[tuple[str, str]]:
        """Kind and name of the plug-ins whose version is part of a run's name."""
        found = [(self.plugin.kind, self.engine)]
        if self.clipping is not None:
            found += [("function", self.clipping.function), ("scope", self.clipping.scope), *self.clipping.policies]
        return found

    @property
    def without_effect(self) -> list[str]:
        """Warnings of what is set and read by nobody."""
        clipping, found = self.clipping, []
        usual = ClippingSettings.model_fields["gamma"].default  # a run's settings are written out whole: all of them are set
        if clipping is not None and clipping.function != "auto_s" and clipping.gamma != usual:
            found.append(f"gamma has no effect under {clipping.function}")
        if clipping is not None and clipping.function != "abadi" and clipping.bound != 1 and clipping.adaptive is None:
            found.append(f"bound {clipping.bound:g} has no effect under {clipping.function} but to multiply SGD's learning rate")
        return found

    def mechanism(self, rows: int, kept: int, seed: int) -> Mechanism:
        """The one object that sampler, noise and accountant are made from.

        Args:
            rows: of the dataset, for delta; kept: rows that can be drawn.

        Raises:
            DpbenchError: no noise multiplier reaches epsilon, or the one that was found spends another.
        """
        delta = {"1/(2n)": 1 / (2 * rows), "n^-1.1": rows**-1.1}.get(str(self.delta)) or float(self.delta)
        sampling = Sampling(self.sampler, kept, min(self.expected_batch_size, kept))
        if self.clipping is None or self.epsilon is None:
            return Mechanism(sampling, self.steps, delta=delta, seed=seed)
        stated = sampling if self.accounted_rows is None else replace(sampling, dataset_size=self.accounted_rows)
        made = calibrated(
            stated,
            self.steps,
            self.clipping.made(),
            self.epsilon,
            delta,
            relation=self.relation,
            seed=seed,
            caveats=tuple(self.caveats),
            noise=self.plugin.extra.get("noise") or "gaussian",
        )
        run_on = made if stated is sampling else replace(made, sampling=sampling, target_epsilon=None)
        return spends(run_on, self.epsilon) if self.accounted_rows is None else run_on

    def privacy(self, plan: Mechanism) -> Privacy | None:
        """Both accountants' epsilon; none for published code without a finite one. None for a non-private run."""
        from dpbench.runner import privacy_of

        made, why = privacy_of(plan), self.plugin.extra.get("why")
        if made is None or why is None:
            return made
        return made.model_copy(
            update={"epsilon": None, "epsilon_rdp": None, "validity": "nominal", "reasons": [why, *made.reasons]}
        )

    def epsilon_metrics(self, plan: Mechanism) -> list[Metric]:
        """The real epsilon, `none` with the reason where there is no finite one, and the one that was asked for."""
        if not plan.private:
            return [Metric(name="epsilon", value=None, text="none", unit="", note="no clipping and no noise")]
        stated = metric("stated_epsilon", self.epsilon or 0.0, "")
        if why := self.plugin.extra.get("why"):
            return [Metric(name="epsilon", value=None, text="none", unit="", note=why), stated]
        spent = plan.epsilon_of_epochs() if plan.sampling.kind == "fixed" else plan.epsilon()
        if spent is None:
            return [Metric(name="epsilon", value=None, text="none", unit="", note="no noise"), stated]
        return [metric("epsilon", spent, ""), stated]

    def mechanism_of(self, count: int | None) -> Mechanism:
        """For `check`: as `mechanism`, but with noise multiplier 0 where the number of rows is known only once they are there."""
        if count:
            return self.mechanism(count, count, 0)
        sampling = Sampling(self.sampler, int(self.expected_batch_size), self.expected_batch_size)
        return Mechanism(sampling, self.steps, self.clipping.made() if self.clipping else None)
