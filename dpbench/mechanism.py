"""The mechanism: one frozen object from which sampler, noise and accountant are all made, and which the record stores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dpbench import accounting, plugins
from dpbench.clipping.adaptive import Adaptive
from dpbench.errors import DpbenchError, unknown

Relation = Literal["add_or_remove", "replace_one"]


@dataclass(frozen=True)
class Clipping:
    """How one example's contribution is bounded.

    bound: L2 bound of the whole contribution; with K groups and uniform thresholds each gets bound / sqrt(K).
    gamma: AUTO-S' stability constant. allocation: how noise is shared between groups. tied: see DESIGN, section 5.
    devices: how many the scope per_device cuts a model on one process into.
    given: thresholds instead of uniform ones, one a group in the model's order or by the group's label; `bound` is then their
    hypotenuse, whatever was passed.
    adaptive: how the thresholds move from step to step; those of the first step are uniform or given.
    """

    function: str = "abadi"
    scope: str = "flat"
    bound: float = 1.0
    gamma: float = 0.01
    allocation: Literal["global", "equal", "weighted"] = "global"
    tied: Literal["sum", "per_use"] = "sum"
    devices: int | None = None
    given: Sequence[float] | Mapping[str, float] | None = None
    adaptive: Adaptive | None = None

    def __post_init__(self) -> None:
        function, scope = plugins.get("function", self.function), plugins.get("scope", self.scope)
        if self.given is not None:
            object.__setattr__(self, "bound", _whole(self.given))
        if not (self.bound > 0 and math.isfinite(self.bound)):
            raise DpbenchError(f"clipping bound {self.bound} is not a positive number", "give a bound above 0")
        if self.gamma < 0:
            raise DpbenchError(f"clipping gamma {self.gamma} is below 0", "AUTO-S uses 0.01")
        if self.tied == "per_use" and self.scope == "flat":
            raise DpbenchError("tied: per_use needs a scope with more than one group", "use tied: sum with flat clipping")
        if self.devices is not None and "devices" not in scope.extra.get("needs", ()):
            raise DpbenchError(f"scope {self.scope} has no use for devices {self.devices}", "leave it out, or use per_device")
        if self.adaptive is not None and not function.extra.get("threshold"):
            raise DpbenchError(
                f"adaptive thresholds with {self.function}: it brings every example to the bound, whatever its norm, so no "
                "quantile of norms says what the bound should be",
                "use function abadi, or leave adaptive out",
            )

    def bounds(self, groups: int, labels: Sequence[str] = ()) -> list[float]:
        """C_1..C_K of the first step: the given ones, or uniform, C_k = bound / sqrt(K), so that hypot(C_1..C_K) = bound.

        Args:
            labels: of the groups, for thresholds given by label.

        Raises:
            DpbenchError: thresholds for other groups than there are.
        """
        if self.given is None:
            return [self.bound / math.sqrt(groups)] * groups
        if isinstance(self.given, Mapping):
            for name in self.given:
                if name not in labels:
                    raise unknown("group", name, labels, "clipping given")
            if missing := [label for label in labels if label not in self.given]:
                raise DpbenchError(f"clipping given: no threshold for group {missing[0]}", f"{len(missing)} of {groups} lack one")
            return [float(self.given[label]) for label in labels]
        if len(self.given) != groups:
            listed = f": {', '.join(labels)}" if labels else ""
            raise DpbenchError(f"clipping given: {len(self.given)} thresholds for {groups} groups{listed}", "give one a group")
        return [float(value) for value in self.given]


def _whole(given: Sequence[float] | Mapping[str, float]) -> float:
    """The hypotenuse of given thresholds.

    Raises:
        DpbenchError: one is not a positive number; says which.
    """
    named = given if isinstance(given, Mapping) else {f"number {number}": value for number, value in enumerate(given)}
    if not named:
        raise DpbenchError("clipping given holds no threshold", "give one a group")
    for name, value in named.items():
        if not (value > 0 and math.isfinite(value)):
            raise DpbenchError(f"clipping given: threshold {value} of {name} is not a positive number", "give it one above 0")
    return math.hypot(*named.values())


def sensitivity(bounds: Sequence[float]) -> float:
    """L2 sensitivity, adding or removing one example, of sums over disjoint tensors bounded by C_1..C_K: hypot(C_1..C_K)."""
    return math.hypot(*bounds)


def noise_stds(
    bounds: Sequence[float], noise_multiplier: float, allocation: str = "global", sizes: Sequence[int] | None = None
) -> list[float]:
    """Noise std of each group's sum: noise_multiplier x g_k x sqrt(sum_j (C_j / g_j)^2).

    Weights g: `global` 1; `equal` C_k; `weighted` C_k / sqrt(d_k) with `sizes` d_k (He et al., ICLR 2023, section 3).
    Guarantee: any weights cost the same privacy as `noise_multiplier` on a sum of sensitivity hypot(C_1..C_K).
    """
    if allocation == "global":
        weights = [1.0] * len(bounds)
    elif allocation == "equal":
        weights = list(bounds)
    elif allocation == "weighted":
        if sizes is None:
            raise DpbenchError("allocation 'weighted' needs the groups' sizes", "pass sizes, or use global or equal")
        weights = [c / math.sqrt(d) for c, d in zip(bounds, sizes, strict=True)]
    else:
        raise DpbenchError(f"unknown noise allocation {allocation!r}", "global, equal or weighted")
    scale = math.hypot(*(c / g for c, g in zip(bounds, weights, strict=True)))
    return [noise_multiplier * g * scale for g in weights]


@dataclass(frozen=True)
class Sampling:
    """How batches are drawn. kind `poisson`: each example on its own with `sample_rate`; `fixed`: shuffled, of equal size."""

    kind: Literal["poisson", "fixed"]
    dataset_size: int
    expected_batch_size: float

    def __post_init__(self) -> None:
        if self.dataset_size < 1:
            raise DpbenchError("the dataset is empty", "give a dataset with at least one example")
        if not 0 < self.expected_batch_size <= self.dataset_size:
            raise DpbenchError(
                f"expected_batch_size {self.expected_batch_size:g} for {self.dataset_size} examples",
                "it must lie above 0 and not above the dataset's size",
            )

    @property
    def sample_rate(self) -> float:
        return self.expected_batch_size / self.dataset_size


@dataclass(frozen=True)
class Mechanism:
    """What is released.

    clipping None means a non-private run: no noise, no epsilon. noise_multiplier: noise std / add-or-remove sensitivity,
    whatever the relation; of all that a step releases, so with adaptive thresholds of sums and counts together.
    caveats: reasons beyond the sampler for which epsilon is only nominal. seed: of noise and
    sampling under `randomness: seeded`; `secret` draws from the operating system instead. noise: `laplace` is for the release of
    one number a step; its multiplier is the scale b over the sensitivity.
    """

    sampling: Sampling
    steps: int
    clipping: Clipping | None = None
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    relation: Relation = "add_or_remove"
    randomness: Literal["seeded", "secret"] = "seeded"
    seed: int = 0
    target_epsilon: float | None = None
    caveats: tuple[str, ...] = ()
    noise: Literal["gaussian", "laplace"] = "gaussian"

    def __post_init__(self) -> None:
        if self.noise_multiplier < 0 or not math.isfinite(self.noise_multiplier):
            raise DpbenchError(f"noise_multiplier {self.noise_multiplier} is not a number >= 0", "give a finite one")
        if self.clipping is None and self.noise_multiplier > 0:
            raise DpbenchError("noise without clipping protects nothing", "give a clipping, or noise_multiplier 0")
        if self.steps < 1:
            raise DpbenchError(f"steps {self.steps} is below 1", "train for at least one step")
        if not 0 < self.delta < 1:
            raise DpbenchError(f"delta {self.delta} is not between 0 and 1", "use about 1 / (2 x dataset size)")
        if self.target_epsilon is not None:
            spent = self.epsilon()
            if spent is not None and spent > self.target_epsilon * (1 + 1e-9):
                raise DpbenchError(
                    f"epsilon {spent:.4g} is above the target {self.target_epsilon:g}",
                    "raise noise_multiplier, or calibrate it with dpbench.accounting.calibrate",
                )

    @property
    def private(self) -> bool:
        return self.clipping is not None

    @property
    def sensitivity(self) -> float:
        """Of the sum over a batch, adding or removing one example, for groups on disjoint tensors; with adaptive thresholds that
        of the first step (and of all, if they are rescaled)."""
        return self.clipping.bound if self.clipping else math.inf

    @property
    def gradient_noise_multiplier(self) -> float:
        """Of the bounded sums: more than `noise_multiplier` where a part of the budget pays for adaptive thresholds."""
        if self.clipping is None or self.clipping.adaptive is None:
            return self.noise_multiplier
        return self.clipping.adaptive.gradient_noise_multiplier(self.noise_multiplier)

    @property
    def reasons(self) -> list[str]:
        """Why epsilon is only nominal; empty where it is valid."""
        found = list(self.caveats)
        if self.sampling.kind == "fixed":
            found.insert(0, "fixed batches accounted as Poisson")
        return found

    def epsilon(self, steps: int | None = None, accountant: str = "pld") -> float | None:
        """Spent after `steps` (default: all); None without clipping or noise, where no finite epsilon exists.

        Raises:
            accounting.Unsupported: the accountant refuses this relation.
        """
        if self.clipping is None or self.noise_multiplier == 0:
            return None
        return accounting.epsilon(
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sampling.sample_rate,
            steps=self.steps if steps is None else steps,
            delta=self.delta,
            relation=self.relation,
            accountant=accountant,
            noise=self.noise,
        )

    def epsilon_of_epochs(self) -> float | None:
        """Of fixed batches, which Poisson sampling does not describe: an example is in one batch of an epoch at most, so each
        epoch is one release of the whole dataset. An upper bound, without amplification by shuffling.

        Raises:
            DpbenchError: Poisson batches.
        """
        if self.sampling.kind != "fixed":
            raise DpbenchError("Poisson batches have no epochs", "ask for epsilon()")
        if self.clipping is None or self.noise_multiplier == 0:
            return None
        epochs = -(-self.steps // max(1, self.sampling.dataset_size // int(self.sampling.expected_batch_size)))
        return accounting.epsilon(
            noise_multiplier=self.noise_multiplier,
            sample_rate=1.0,
            steps=epochs,
            delta=self.delta,
            relation=self.relation,
            noise=self.noise,
        )

    def describe(self) -> dict[str, Any]:
        """For the record."""
        values = asdict(self)
        if self.noise == "gaussian":
            del values["noise"]  # as in records from before there was another
        values["caveats"] = list(self.caveats)
        values["sampling"]["sample_rate"] = self.sampling.sample_rate
        values["sensitivity"] = self.sensitivity if self.private else None
        values["noise_std"] = self.gradient_noise_multiplier * self.sensitivity if self.private else None
        values["gradient_noise_multiplier"] = self.gradient_noise_multiplier if self.private else None
        return values


def calibrated(
    sampling: Sampling,
    steps: int,
    clipping: Clipping,
    epsilon: float,
    delta: float,
    **rest: Any,
) -> Mechanism:
    """A mechanism whose PLD epsilon is at most `epsilon` and within 1 % of it."""
    noise_multiplier = accounting.calibrate(
        epsilon,
        sample_rate=sampling.sample_rate,
        steps=steps,
        delta=delta,
        relation=rest.get("relation", "add_or_remove"),
        noise=rest.get("noise", "gaussian"),
    )
    return Mechanism(
        sampling=sampling,
        steps=steps,
        clipping=clipping,
        noise_multiplier=noise_multiplier,
        delta=delta,
        target_epsilon=epsilon,
        **rest,
    )
