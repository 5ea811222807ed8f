"""The zeroth-order step: two forward passes along a random direction, the release, and the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods.engines.batches import Losses, batch_size, select, versions_of
from dpbench.methods.engines.layers import check_examples_apart
from dpbench.methods.engines.probes import RandomStreams, check_examples_apart_by_value, has_values
from dpbench.methods.engines.resuming import Resumable
from dpbench.methods.engines.writes import StateWatch, check_no_known_writer
from dpbench.methods.zeroth.directions import WIDE, Directions, Kind, check_perturbation
from dpbench.methods.zeroth.displacement import Displacement
from dpbench.privacy.mechanism import Mechanism
from dpbench.privacy.noise import Noise

SILENT = 20
"""The number of consecutive steps without an example whose loss moves after which a run that is not private is stopped."""

_LOOKS = 2  # steps in which losses are checked not to mix examples; in the second, weights that start at 0 have moved
_NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Step:
    """What one step did.

    count: The number of examples. loss: Their mean loss at the unmoved weights, to second order, None without examples.
    clipped: The share whose derivative was bounded. slope: The released sum over the expected batch size.

    count, loss and clipped are not private.
    """

    count: int
    loss: float | None
    clipped: float | None
    slope: float


class ZerothOrder(Resumable):
    """A zeroth-order method of `dpbench/methods/zeroth` that trains `model` in place.

    An example's derivative along u is D_i = (f_i(x + lambda u) - f_i(x - lambda u)) / (2 lambda). With B the expected batch size,
    C the bound and z noise of std m C:

    - `mezo`: x <- x - lr (sum D_i / B) u
    - `dpzero`, `dp_zo_laplace`: x <- x - lr ((sum clip_C(D_i) + z) / B) u, one number z (Laplace of scale m C)
    - `dpgd_0th`: x <- x - lr (sum clip_C(D_i u) + z) / B, one z for each weight

    Both passes draw the same random numbers, so that D_i is the derivative under one mask of dropout. Half-precision weights
    return to x exactly after the passes, and their step is rounded without bias; see `Displacement`.

    Source: Zhang et al., ICML 2024, Algorithms 1 and 2, in its experiments' mini-batch form; Malladi et al., NeurIPS 2023.

    Guarantee: that of the mechanism, over the released slopes (and for `dpgd_0th` weights). The noise has separate streams, about
    which the public directions say nothing. An example whose loss is not finite contributes 0, and a step without a finite one
    is a step of noise: whether a private run stops depends on no loss. A model that mixes examples, or keeps anything of them
    in a forward pass, is refused. There is no guarantee under `published`.

    Args:
        published: Whether `method` names a paper's published code, faults included.
        rate: The learning rate of the next step; it may be set between steps.
        perturbation: Lambda.

    Raises:
        DpbenchError: There is no trainable weight, the perturbation is lost in the weights' precision or absurd, the rate is no
            rate, the method has another clipping or noise, or a private method has modules that mix examples or write into
            themselves.
    """

    _rate: float

    def __init__(
        self,
        method: str,
        model: nn.Module,
        mechanism: Mechanism,
        rate: float,
        perturbation: float = 1e-3,
        directions: Kind = "gaussian",
        published: bool = False,
    ) -> None:
        self.method = plugins.get("published_zeroth" if published else "zeroth", method)
        self.name, self.model, self.mechanism = self.method.name, model, mechanism
        self.rate, self.perturbation = rate, perturbation
        self.trainable = _trainable(model)
        _must_suit(self.method, mechanism)
        weights = list(self.trainable.values())
        check_perturbation(weights, perturbation)
        self.directions = Directions(weights, mechanism.seed, directions)
        self.steps = self.non_finite_examples = self.longest_silence = self._silent = 0
        self.noise = Noise(mechanism, on=[model, *weights])
        self._displacement = Displacement(self.directions)
        self._places = {name: _place(p) for name, p in self.trainable.items()}
        self._watch, self._looks = StateWatch(model), 0
        self._has_values = has_values(model)
        if mechanism.private:
            self._check_modules()

    @property
    def rate(self) -> float:
        """The learning rate.

        Raises:
            DpbenchError: It is set to something else than a finite number of at least 0.
        """
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        if not (isinstance(value, Real) and math.isfinite(value) and value >= 0):
            raise DpbenchError(f"learning rate {value!r} is not a finite number >= 0", "give one, such as 1e-6")
        self._rate = value

    def step(self, losses: Losses, batches: Iterable[Any]) -> Step:
        """Make one step over the physical batches of a logical batch. An empty batch has none, and is released too.

        An error, also one of the losses, leaves the weights unchanged.

        Raises:
            DpbenchError: `losses` are not one number an example, or depend on other examples; a forward pass writes into the
                model; the trained weights are others than at first; the mechanism's steps are done. Without privacy also: no
                example's loss is finite, or none has moved for `SILENT` steps.
        """
        self._check_before()
        physical, number, size = list(batches), self.steps, self.perturbation
        try:
            self._displacement.move_(number, size)
            streams = RandomStreams(self.model) if self._has_values else None
            self._look_for_mixing(losses, physical)
            above = self._losses(losses, physical)
            self._displacement.move_(number, -size)
            if streams is not None:
                streams.rewind()
            below = self._losses(losses, physical)
            derivatives = (above - below) / (2 * size)
            finite = derivatives.isfinite()
            self._must_be_finite(finite)
            derivatives = derivatives.where(finite, 0.0)
            self._must_move(derivatives)
        except BaseException:
            self._displacement.move_(number, 0.0)
            raise
        self.non_finite_examples += int((~finite).sum())
        clipped, total = self._bounded(derivatives, number)
        slope = self._released(total, number) / self.mechanism.sampling.expected_batch_size
        self._displacement.settle_(number, -(self.rate * slope), self._noise_of_narrow())
        self._add_vector_noise_()
        self.steps += 1
        mean = (above + below)[finite].mean().item() / 2 if finite.any() else None
        return Step(len(derivatives), mean, clipped, slope)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as `Resumable` does. The weights are in the model's state, and the caller keeps the rate.

        Raises:
            DpbenchError: It is called in the middle of a step.
        """
        return super().state_dict() | self._ways

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state, before the first step.

        Raises:
            DpbenchError: As in `Resumable`, or the perturbation or the kind of directions differs.
        """
        if isinstance(state, dict) and state.get("method") == self.name:
            for name, value in self._ways.items():
                if state.get(name) != value:
                    raise DpbenchError(f"the state has {name} {state.get(name)!r}, not {value!r}", "go on as it was saved")
        super().load_state_dict(state)

    @property
    def _ways(self) -> dict[str, Any]:
        return {"perturbation": self.perturbation, "directions": self.directions.kind}

    def _in_a_step(self) -> bool:
        return self._displacement.at != 0

    def _check_modules(self) -> None:
        check_examples_apart(self.model)
        check_no_known_writer(self.model)

    def _check_before(self) -> None:
        """Check before each step that the mechanism has it, and that the weights are those that the method moves."""
        if end := self.beyond_the_end():
            raise end
        current = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        for name, parameter in current.items():
            if name not in self.trainable:
                raise DpbenchError(
                    f"{name} is trainable, and was not when training began: it would not be trained",
                    "unfreeze weights before the method is attached",
                )
            if parameter is not self.trainable[name] or _place(parameter) != self._places[name]:
                raise DpbenchError(
                    f"{name} is another tensor than when training began: the method would move the old one",
                    "move, convert and load the model before the method is attached",
                )
        if lost := [name for name in self.trainable if name not in current]:
            raise DpbenchError(
                f"{lost[0]} was trainable when training began, and is frozen, tied or gone: it would be moved all the same",
                "freeze, tie and take out weights before the method is attached",
            )
        if self.mechanism.private:
            self._check_modules()

    def _look_for_mixing(self, losses: Losses, physical: list[Any]) -> None:
        """Check in the first steps with two examples in a batch that no loss depends on another example."""
        if not self.mechanism.private or not self._has_values or self._looks >= _LOOKS:
            return
        with torch.inference_mode(), without_gradients():
            for batch in physical:
                if check_examples_apart_by_value(losses, self.model, batch, select, batch_size(batch)):
                    self._looks += 1
                    return

    def _must_be_finite(self, finite: Tensor) -> None:
        """Stop a run without privacy where no loss is finite."""
        if not self.mechanism.private and len(finite) and not finite.any():
            raise DpbenchError(
                f"step {self.steps}: no example's loss is finite",
                "lower the learning rate or the perturbation, or use a wider dtype",
            )

    def _must_move(self, derivatives: Tensor) -> None:
        """Stop a run without privacy where the losses are too coarse for the perturbation, as in half precision."""
        if not len(derivatives):
            return
        self._silent = 0 if derivatives.any() else self._silent + 1
        self.longest_silence = max(self.longest_silence, self._silent)
        if self._silent >= SILENT and not self.mechanism.private:
            raise DpbenchError(
                f"step {self.steps}: no example's loss has moved for {SILENT} steps: "
                f"the perturbation {self.perturbation:g} is lost",
                "raise it, or use wider weights and losses",
            )

    def _losses(self, losses: Losses, physical: list[Any]) -> Tensor:
        """Return the losses [B] of all physical batches, in fp64 on the host."""
        parts = [torch.zeros(0, dtype=torch.float64)]
        private = self.mechanism.private
        with torch.inference_mode():
            for batch in physical:
                versions = versions_of(batch)
                with self._watch if private else nullcontext(), without_gradients():
                    values = losses(self.model, batch)
                if versions_of(batch) != versions:
                    raise DpbenchError(
                        "the forward pass changes its batch in place: the second one of a step would see other data",
                        "make that operation out of place",
                    )
                if not isinstance(values, Tensor) or values.dim() != 1:
                    form = f"shape {list(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
                    raise DpbenchError(f"losses of {form} where [B] was expected", "return one loss an example: reduction='none'")
                if private and len(values) != (size := batch_size(batch)):
                    raise DpbenchError(
                        f"{len(values)} losses of a batch of {size} examples: one an example was expected",
                        "reduce over tokens and other parts of an example, never over examples",
                    )
                parts.append(values.double().cpu())
        return torch.cat(parts)

    def _bounded(self, derivatives: Tensor, number: int) -> tuple[float | None, float]:
        """Return the share of derivatives that was bounded, and the sum of the bounded derivatives."""
        clipping = self.mechanism.clipping
        if clipping is None:
            return None, float(derivatives.sum())
        bound = clipping.bound
        if self.method.extra["clips"] == "vector":
            bound /= self.directions.length(number)  # |D_i u| <= C
        over = derivatives.abs() > bound
        return (float(over.double().mean()) if len(over) else None), float(derivatives.clamp(-bound, bound).sum())

    def _released(self, total: float, number: int) -> float:
        """Return the sum with its one number of noise."""
        std = self.mechanism.noise_multiplier * self.mechanism.sensitivity if self.mechanism.clipping else 0.0
        if std == 0 or self.method.extra["clips"] == "vector":
            return total
        if self.method.extra.get("noise_of_directions"):
            return total + std * self.directions.next_number(number)
        if self.mechanism.noise == "laplace":
            a, b, c, d = self.noise.on_counts([0.0] * 4, 1.0)
            return total + std * (a * a + b * b - c * c - d * d) / 2  # two exponential numbers' difference
        return self.noise.on_counts([total], std)[0]

    def _std_of_vector_noise(self) -> float:
        """Return the noise std of each weight in a step; 0 for methods that release one number."""
        plan = self.mechanism
        if self.method.extra["clips"] != "vector":
            return 0.0
        return self.rate * plan.noise_multiplier * plan.sensitivity / plan.sampling.expected_batch_size

    def _noise_of_narrow(self) -> Callable[[Tensor], None] | None:
        """Return a function that adds the vector noise of half-precision weights.

        It is added before the sum is rounded, as rounding could otherwise move one example's part beyond the bound.
        """
        std = self._std_of_vector_noise()
        return (lambda moved: self.noise.release_([(moved, std)], 1.0)) if std > 0 else None

    def _add_vector_noise_(self) -> None:
        std = self._std_of_vector_noise()
        if std > 0:
            self.noise.release_([(w, std) for w in self.directions.weights if w.dtype in WIDE], 1.0)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> parameter of all weights that a method moves.

    Raises:
        DpbenchError: There is none, or one cannot be moved in place. The message names it.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise DpbenchError("no weight is trainable", "unfreeze some before training")
    for name, p in trainable.items():
        if nn.parameter.is_lazy(p):
            raise DpbenchError(f"{name} has no shape yet", "run one forward pass over placeholder inputs before training")
        if p.dtype not in (*WIDE, *_NARROW) or p.layout != torch.strided or hasattr(p, "to_local"):
            form = str(p.dtype).removeprefix("torch.") if p.layout == torch.strided else "sparse"
            raise DpbenchError(
                f"{name} ({'sharded' if hasattr(p, 'to_local') else form}) cannot be moved along a direction",
                "train unsharded float32, float64, float16 or bfloat16 tensors, and freeze others",
            )
    return trainable


def _place(parameter: Tensor) -> tuple[object, ...]:
    """Return what identifies a tensor's memory: another place is another tensor, whatever object holds it."""
    form = (parameter.dtype, parameter.device, tuple(parameter.shape), parameter.stride())
    return form if parameter.is_meta or isinstance(parameter, FakeTensor) else (*form, parameter.data_ptr())


def _must_suit(method: plugins.Plugin, mechanism: Mechanism) -> None:
    private, clipping = method.extra["private"], mechanism.clipping
    if private != (clipping is not None):
        requirement = "needs a clipping" if private else "takes no clipping and no noise"
        raise DpbenchError(f"{method.name} {requirement}", "mezo is the method without, dpzero that with")
    if clipping is None:
        return
    if (
        clipping.function != "abadi"
        or clipping.scope != "flat"
        or clipping.adaptive is not None
        or clipping.thresholds is not None
    ):
        raise DpbenchError(
            f"{method.name} bounds one number an example: {clipping.function}, scope {clipping.scope} has no meaning for it",
            "use function abadi, scope flat, and one bound",
        )
    if mechanism.noise != method.extra["noise"]:
        raise DpbenchError(
            f"{method.name} adds {method.extra['noise']} noise, not {mechanism.noise}", "give the mechanism that noise"
        )
    if not math.isfinite(clipping.bound):
        raise DpbenchError("an infinite bound protects nothing", "use mezo")


@contextmanager
def without_gradients() -> Iterator[None]:
    """Check that a forward pass inside the block forms no gradients, as it runs in inference mode.

    Raises:
        DpbenchError: It does.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in ("inference", "does not require grad", "grad_fn", "requires_grad")):
            raise
        raise DpbenchError(
            f"the forward pass forms gradients, which a pass of inference has none of: {str(error).splitlines()[0]}",
            "train by a first-order engine, or make that part without autograd",
        ) from error
