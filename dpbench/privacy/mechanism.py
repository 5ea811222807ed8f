"""The mechanism: one frozen object that sampler, noise and accountant are derived from, and that the record stores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, assert_never, get_args

from dpbench import plugins
from dpbench.arguments import between, finite_number, known_name, whole_number
from dpbench.errors import DpbenchError, unknown
from dpbench.privacy import accounting
from dpbench.privacy.accounting import Accountant, NoiseLaw, Relation, Release
from dpbench.privacy.clipping.adaptive import Adaptive
from dpbench.privacy.streams import LARGEST_NUMBER, LARGEST_SEED

Allocation = Literal["global", "equal", "weighted"]
Tied = Literal["sum", "per_use"]
Sampler = Literal["poisson", "fixed"]
Randomness = Literal["seeded", "secret"]


@dataclass(frozen=True)
class Clipping:
    """How one example's contribution is bounded.

    bound: The L2 bound of the contribution over all groups; with K groups and uniform thresholds each gets bound / sqrt(K).
    gamma: AUTO-S' stability constant. allocation: How noise is shared between groups. tied: See DESIGN, section 5.
    devices: The number of parts into which the scope per_device cuts a model on one process.
    thresholds: Thresholds in place of uniform ones, one for each group in the model's order or by the group's label. `bound` is
        then their hypotenuse, whatever was passed.
    adaptive: How the thresholds move from step to step, starting from the uniform ones or those in `thresholds`.

    Raises:
        DpbenchError: A name is unknown (the message suggests the nearest), a number is out of range, or parts do not go together.
    """

    function: str = "abadi"
    scope: str = "flat"
    bound: float = 1.0
    gamma: float = 0.01
    allocation: Allocation = "global"
    tied: Tied = "sum"
    devices: int | None = None
    thresholds: Sequence[float] | Mapping[str, float] | None = None
    adaptive: Adaptive | None = None

    def __post_init__(self) -> None:
        known_name(self.function, "function", plugins.discover("function"))
        known_name(self.scope, "scope", plugins.discover("scope"))
        known_name(self.allocation, "noise allocation", get_args(Allocation))
        known_name(self.tied, "way to count tied weights", get_args(Tied))
        function, scope = plugins.get("function", self.function), plugins.get("scope", self.scope)
        if self.thresholds is not None:
            object.__setattr__(self, "thresholds", _checked_thresholds(self.thresholds))
            object.__setattr__(self, "bound", _hypotenuse(self.thresholds))
        object.__setattr__(self, "bound", finite_number(self.bound, "clipping bound", above=0, hint="give a bound above 0"))
        object.__setattr__(self, "gamma", finite_number(self.gamma, "clipping gamma", least=0, hint="AUTO-S uses 0.01"))
        if self.devices is not None:
            object.__setattr__(self, "devices", whole_number(self.devices, "clipping devices"))
        if self.adaptive is not None and not isinstance(self.adaptive, Adaptive):
            raise DpbenchError(f"clipping adaptive is a {type(self.adaptive).__name__}", "give an Adaptive, or leave it out")
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
        """Return C_1..C_K of the first step: those in `thresholds`, or C_k = bound / sqrt(K), so that hypot(C_1..C_K) = bound.

        Args:
            labels: The groups' labels, for thresholds by label.

        Raises:
            DpbenchError: The thresholds are for other groups than there are.
        """
        if self.thresholds is None:
            return [self.bound / math.sqrt(groups)] * groups
        if isinstance(self.thresholds, Mapping):
            for name in self.thresholds:
                if name not in labels:
                    raise unknown("group", name, labels, "clipping thresholds")
            if missing := [label for label in labels if label not in self.thresholds]:
                raise DpbenchError(
                    f"clipping thresholds: no threshold for group {missing[0]}", f"{len(missing)} of {groups} lack one"
                )
            return [float(self.thresholds[label]) for label in labels]
        if len(self.thresholds) != groups:
            listed = f": {', '.join(labels)}" if labels else ""
            raise DpbenchError(
                f"clipping thresholds: {len(self.thresholds)} thresholds for {groups} groups{listed}", "give one a group"
            )
        return [float(value) for value in self.thresholds]


def _checked_thresholds(thresholds: object) -> tuple[float, ...] | dict[str, float]:
    """Return a copy of the thresholds, which later changes to the argument do not reach.

    Raises:
        DpbenchError: There is none, or one is not a positive number. The message names it.
    """
    if isinstance(thresholds, str | bytes) or not isinstance(thresholds, Sequence | Mapping):
        raise DpbenchError(
            f"clipping thresholds {thresholds!r} is no list of thresholds", "give one a group, in order or by label"
        )
    by_name = (
        thresholds if isinstance(thresholds, Mapping) else {f"number {number}": value for number, value in enumerate(thresholds)}
    )
    if not by_name:
        raise DpbenchError("clipping thresholds holds no threshold", "give one a group")
    checked = {}
    for name, value in by_name.items():
        try:
            checked[name] = finite_number(value, "threshold", above=0)
        except DpbenchError as error:
            problem = f"clipping thresholds: threshold {value!r} of {name} is not a positive number"
            raise DpbenchError(problem, "give it one above 0") from error
    return checked if isinstance(thresholds, Mapping) else tuple(checked.values())


def _hypotenuse(thresholds: Sequence[float] | Mapping[str, float]) -> float:
    """Return the L2 bound of all groups together."""
    return math.hypot(*(thresholds.values() if isinstance(thresholds, Mapping) else thresholds))


def sensitivity(bounds: Sequence[float]) -> float:
    """Return the L2 sensitivity of sums over disjoint tensors bounded by C_k, to one example more or less: hypot(C_1..C_K)."""
    return math.hypot(*bounds)


def noise_stds(
    bounds: Sequence[float], noise_multiplier: float, allocation: Allocation = "global", sizes: Sequence[int] | None = None
) -> list[float]:
    """Return the noise std of each group's sum: noise_multiplier x g_k x sqrt(sum_j (C_j / g_j)^2).

    The weights g_k are 1 for `global`, C_k for `equal`, and C_k / sqrt(d_k) with `sizes` d_k for `weighted` (He et al., ICLR
    2023, section 3).

    Guarantee: any weights cost the same privacy as `noise_multiplier` on a sum of sensitivity hypot(C_1..C_K).

    Raises:
        DpbenchError: The allocation is unknown, or it is `weighted` without sizes.
    """
    known_name(allocation, "noise allocation", get_args(Allocation))
    match allocation:
        case "global":
            weights = [1.0] * len(bounds)
        case "equal":
            weights = list(bounds)
        case "weighted":
            if sizes is None:
                raise DpbenchError("allocation 'weighted' needs the groups' sizes", "pass sizes, or use global or equal")
            weights = [c / math.sqrt(d) for c, d in zip(bounds, sizes, strict=True)]
        case _:
            assert_never(allocation)
    scale = math.hypot(*(c / g for c, g in zip(bounds, weights, strict=True)))
    return [noise_multiplier * g * scale for g in weights]


@dataclass(frozen=True)
class Sampling:
    """How batches are drawn: `poisson` draws each example independently with `sample_rate`, `fixed` cuts a shuffled dataset.

    Raises:
        DpbenchError: The kind is unknown (the message suggests the nearest), the dataset is empty, the batch size is not above 0
            or is above the dataset's size, or fixed batches would hold a fraction of an example.
    """

    kind: Sampler
    dataset_size: int
    expected_batch_size: float

    def __post_init__(self) -> None:
        known_name(self.kind, "kind of sampling", get_args(Sampler))
        if self.dataset_size == 0:
            raise DpbenchError("the dataset is empty", "give a dataset with at least one example")
        object.__setattr__(self, "dataset_size", whole_number(self.dataset_size, "dataset_size"))
        size = finite_number(
            self.expected_batch_size, "expected_batch_size", above=0, hint="it must be above 0 and not above the dataset's size"
        )
        object.__setattr__(self, "expected_batch_size", size)
        if size > self.dataset_size:
            raise DpbenchError(
                f"expected_batch_size {size:g} for {self.dataset_size} examples",
                "it must be above 0 and not above the dataset's size",
            )
        if self.kind == "fixed" and size != int(size):
            raise DpbenchError(
                f"expected_batch_size {size:g} with fixed batches, which hold a whole number of examples",
                "give a whole number, or sample by poisson",
            )

    @property
    def sample_rate(self) -> float:
        return self.expected_batch_size / self.dataset_size


@dataclass(frozen=True)
class Mechanism:
    """What a run releases.

    clipping: None means a non-private run, without noise and epsilon.
    noise_multiplier: The noise std over the add-or-remove sensitivity, whatever the relation. It is that of everything that a
    step releases: with adaptive thresholds, of sums and counts together.
    caveats: Reasons beyond the sampler for which epsilon is only nominal.
    seed: The seed of noise and sampling under `randomness: seeded`; `secret` draws from the operating system instead.
    noise: `laplace` is for the release of one number a step; its multiplier is the scale b over the sensitivity.
    spent: The releases of the stages before, on the same examples and with the same delta and relation. Epsilon is that of all
    stages together.

    Guarantee: every field has been checked, and is taken as it was written. With target_epsilon, epsilon of all steps is at most
    that.

    Raises:
        DpbenchError: A name is unknown (the message suggests the nearest), a number is not finite or out of range, there is noise
            without clipping, or epsilon is above the target.
    """

    sampling: Sampling
    steps: int
    clipping: Clipping | None = None
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    relation: Relation = "add_or_remove"
    randomness: Randomness = "seeded"
    seed: int = 0
    target_epsilon: float | None = None
    caveats: tuple[str, ...] = ()
    noise: NoiseLaw = "gaussian"
    spent: tuple[Release, ...] = ()

    def __post_init__(self) -> None:
        self._check_kinds()
        if self.spent and (self.clipping is None or self.noise != "gaussian"):
            raise DpbenchError("a stage without Gaussian noise has no epsilon to compose", "make every stage of a run private")
        if self.clipping is None and self.noise_multiplier > 0:
            raise DpbenchError("noise without clipping protects nothing", "give a clipping, or noise_multiplier 0")
        if self.target_epsilon is None:
            return
        positive = finite_number(self.target_epsilon, "target_epsilon", above=0, hint="give one above 0, or none")
        object.__setattr__(self, "target_epsilon", positive)
        spent = self.epsilon()
        if spent is None:
            raise DpbenchError(
                f"target_epsilon {positive:g} without noise: no finite epsilon is spent, so none is within it",
                "give clipping and a noise_multiplier above 0, or leave target_epsilon out",
            )
        if spent > positive * (1 + 1e-9):
            raise DpbenchError(
                f"epsilon {spent:.4g}{' of all stages together' if self.spent else ''} is above the target {positive:g}",
                "raise noise_multiplier, or calibrate it with dpbench.privacy.mechanism.calibrated",
            )

    def _check_kinds(self) -> None:
        """Check every field by itself."""
        if not isinstance(self.sampling, Sampling):
            raise DpbenchError(f"sampling is a {type(self.sampling).__name__}", "give a dpbench.privacy.mechanism.Sampling")
        if self.clipping is not None and not isinstance(self.clipping, Clipping):
            raise DpbenchError(
                f"clipping is a {type(self.clipping).__name__}", "give a dpbench.privacy.mechanism.Clipping, or None"
            )
        known_name(self.relation, "neighbouring relation", get_args(Relation))
        known_name(self.randomness, "randomness", get_args(Randomness))
        known_name(self.noise, "noise", get_args(NoiseLaw))
        steps = whole_number(self.steps, "steps", most=LARGEST_NUMBER, hint="train for a whole number of steps, at least one")
        seed = whole_number(self.seed, "seed", least=0, most=LARGEST_SEED, hint=f"give an int from 0 to {LARGEST_SEED}")
        multiplier = finite_number(self.noise_multiplier, "noise_multiplier", least=0, hint="give a finite number >= 0")
        delta = between(self.delta, "delta", 0, 1, "use about 1 / (2 x dataset size)")
        caveats = self.caveats
        if not isinstance(caveats, tuple | list) or not all(isinstance(reason, str) and reason.strip() for reason in caveats):
            raise DpbenchError(f"caveats {caveats!r} are not sentences", "give a tuple of reasons, each a text")
        if not isinstance(self.spent, tuple) or not all(isinstance(release, Release) for release in self.spent):
            raise DpbenchError("the stages before are no tuple of releases", "give what release_of says of each")
        checked = {"steps": steps, "seed": seed, "noise_multiplier": multiplier, "delta": delta, "caveats": tuple(caveats)}
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def private(self) -> bool:
        return self.clipping is not None

    @property
    def sensitivity(self) -> float:
        """The sensitivity of the sum over a batch, adding or removing one example, for groups on disjoint tensors.

        With adaptive thresholds it is that of the first step (and of all steps, if they are rescaled).
        """
        return self.clipping.bound if self.clipping else math.inf

    @property
    def gradient_noise_multiplier(self) -> float:
        """The noise multiplier of the bounded sums: larger than `noise_multiplier` where adaptive thresholds take budget."""
        if self.clipping is None or self.clipping.adaptive is None:
            return self.noise_multiplier
        return self.clipping.adaptive.gradient_noise_multiplier(self.noise_multiplier)

    @property
    def reasons(self) -> list[str]:
        """The reasons for which epsilon is only nominal; empty where it is valid.

        A delta of 1/n or more is a reason: publishing one random example in full is (0, 1/n)-differentially private.
        """
        reasons = []
        if self.sampling.kind == "fixed":
            reasons.append("fixed batches accounted as Poisson")
        size = self.sampling.dataset_size
        if self.private and self.delta >= 1 / size:
            reasons.append(f"delta {self.delta:g} is not below 1/n (n = {size}): it allows an example to be published as it is")
        return [*reasons, *self.caveats]

    def epsilon(self, steps: int | None = None, accountant: Accountant = "pld") -> float | None:
        """Return epsilon after `steps` (default: all); None without clipping or noise, where no finite epsilon exists.

        Raises:
            accounting.Unsupported: The accountant refuses this relation.
            DpbenchError: The accountant is unknown, or delta or the noise multiplier is outside of its range.
        """
        return self._spent(self.sampling.sample_rate, self.steps if steps is None else steps, accountant)

    def epsilon_of_epochs(self) -> float | None:
        """Return an upper bound on epsilon of fixed batches, which Poisson sampling does not describe.

        An example is in one batch of an epoch at most: each epoch is one release of the full dataset, without amplification.

        Raises:
            DpbenchError: The batches are drawn by Poisson sampling.
        """
        if self.sampling.kind != "fixed":
            raise DpbenchError("Poisson batches have no epochs", "ask for epsilon()")
        epochs = -(-self.steps // max(1, self.sampling.dataset_size // int(self.sampling.expected_batch_size)))
        return self._spent(1.0, epochs, "pld")

    def _spent(self, sample_rate: float, steps: int, accountant: Accountant) -> float | None:
        known_name(accountant, "accountant", accounting.ACCOUNTANTS)
        if self.clipping is None or self.noise_multiplier == 0:
            return None
        stages = (*self.spent, Release(self.noise_multiplier, sample_rate, steps))
        return accounting.epsilon(stages, delta=self.delta, relation=self.relation, accountant=accountant, noise=self.noise)

    def describe(self) -> dict[str, Any]:
        """Return the entry for the record."""
        values = asdict(self)
        spent = values.pop("spent")
        if self.noise == "gaussian":
            del values["noise"]  # as in records from before there were other laws of noise
        values["caveats"] = list(self.caveats)
        values["sampling"]["sample_rate"] = self.sampling.sample_rate
        values["sensitivity"] = self.sensitivity if self.private else None
        values["noise_std"] = self.gradient_noise_multiplier * self.sensitivity if self.private else None
        values["gradient_noise_multiplier"] = self.gradient_noise_multiplier if self.private else None
        if spent:
            values["stages_before"] = list(spent)
        return values


def calibrated(mechanism: Mechanism, epsilon: float) -> Mechanism:
    """Return the mechanism with the noise multiplier at which its PLD epsilon is at most `epsilon` and within 1 % of it.

    Args:
        mechanism: Its noise multiplier is replaced, whatever it is.

    Raises:
        DpbenchError: The epsilon is out of range, cannot be reached, or has been spent by the stages before.
    """
    noise_multiplier = accounting.calibrate(
        epsilon,
        sample_rate=mechanism.sampling.sample_rate,
        steps=mechanism.steps,
        delta=mechanism.delta,
        relation=mechanism.relation,
        noise=mechanism.noise,
        spent=mechanism.spent,
    )
    return replace(mechanism, noise_multiplier=noise_multiplier, target_epsilon=epsilon)
