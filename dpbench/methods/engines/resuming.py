"""Stopping and resuming a method: the state of an attached engine or a zeroth-order method, and the end of its mechanism."""

from __future__ import annotations

from typing import Any

from torch import nn

from dpbench.arguments import whole_number
from dpbench.errors import DpbenchError
from dpbench.files import canonical_json
from dpbench.methods.engines.thresholds import Thresholds
from dpbench.privacy.mechanism import Mechanism
from dpbench.privacy.noise import Noise

FORMAT = 1
"""The format number of a state; it is raised when the contents of states change."""


class Resumable:
    """A method whose training can be saved and resumed. The states of the model and the optimizer are saved separately.

    Subclasses set name, mechanism, trainable, steps and noise.
    """

    name: str
    mechanism: Mechanism
    trainable: dict[str, nn.Parameter]
    steps: int
    noise: Noise
    thresholds: Thresholds | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return steps, positions of the noise's streams and adaptive thresholds, for `torch.save`; loads with `weights_only`.

        Training k steps, saving, and resuming elsewhere with `load_state_dict` and `sampling.batches(mechanism, start=k)` is the
        same to the bit as not stopping. Under `randomness: secret` it resumes with fresh keys and draws instead.

        Guarantee: it is computed from releases and the mechanism alone. It holds nothing of a batch, and under
        `randomness: secret` nothing that could reproduce noise. Counts of examples for display (`non_finite_examples`) are left
        out.

        Raises:
            DpbenchError: It is called in the middle of a step, whose sums have no noise yet.
        """
        if self._in_a_step():
            raise DpbenchError(
                "the state in the middle of a step: its sums have no noise yet, so they are not kept",
                "save after the step",
            )
        return {
            "format": FORMAT,
            "method": self.name,
            "mechanism": self.mechanism.describe(),
            "tensors": [[name, list(tensor.shape)] for name, tensor in self.trainable.items()],
            "steps": self.steps,
            "noise": self.noise.state_dict(),
            "thresholds": None if self.thresholds is None else self.thresholds.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state, before the first step.

        Raises:
            DpbenchError: This method is past its first step, or the state is damaged or of another mechanism, method or model.
                The message names the first difference.
        """
        if self.steps or self._in_a_step():
            raise DpbenchError(f"a state is loaded after {self.steps} steps", "load it into a method that was just attached")
        try:
            self._check_same(state)
            steps = whole_number(state["steps"], "the state's steps", least=0, most=self.mechanism.steps)
            if self.thresholds is not None:
                self.thresholds.check_state(state["thresholds"], steps)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise DpbenchError(f"the state is damaged ({type(error).__name__}: {error})", "load what state_dict gave") from error
        self.noise.load_state_dict(state["noise"])
        self.steps = steps
        if self.thresholds is not None:
            self._go_on_from(self.thresholds.load_state_dict(state["thresholds"]))

    def beyond_the_end(self) -> DpbenchError | None:
        """Return why the next step is not allowed; None where the mechanism has it."""
        if self.steps < self.mechanism.steps:
            return None
        return DpbenchError(
            f"step {self.steps + 1} of a mechanism of {self.mechanism.steps} steps: its epsilon counts no more than those",
            "give the mechanism more steps, and calibrate its noise for them",
        )

    def _check_same(self, state: object) -> None:
        parts = {"format", "method", "mechanism", "tensors", "steps", "noise", "thresholds"}
        if not isinstance(state, dict) or not parts <= set(state) or not isinstance(state["noise"], dict):
            raise DpbenchError("this is no state of a method", "load what its state_dict gave")
        if state["format"] != FORMAT:
            raise DpbenchError(f"the state has format {state['format']!r}, not {FORMAT}", "go on with the version that saved it")
        if state["method"] != self.name:
            raise DpbenchError(f"the state is of {state['method']!r}, not {self.name!r}", "attach the method that was saved")
        different = first_difference(state["mechanism"], self.mechanism.describe())
        if different is not None:
            field, saved, here = different
            raise DpbenchError(f"the state's mechanism has {field} {saved!r}, not {here!r}", "go on with the one that was saved")
        saved_tensors = {str(name): list(shape) for name, shape in state["tensors"]}
        for name in dict.fromkeys([*saved_tensors, *self.trainable]):
            shape = list(self.trainable[name].shape) if name in self.trainable else None
            if saved_tensors.get(name) != shape:
                raise DpbenchError(
                    f"the state trains {name} of shape {saved_tensors.get(name)}, not {shape}", "build the model as it was"
                )

    def _in_a_step(self) -> bool:
        """Return whether anything has been added to a sum that is not released yet."""
        return False

    def _go_on_from(self, bounds: list[float]) -> None:
        """Use these bounds of adaptive thresholds for the next step."""
        raise NotImplementedError


def first_difference(saved: object, here: object, field: str = "") -> tuple[str, object, object] | None:
    """Return (dotted name, saved value, value here) of the first field in which two descriptions differ; None where none does."""
    if isinstance(saved, dict) and isinstance(here, dict):
        for name in dict.fromkeys([*here, *saved]):
            different = first_difference(saved.get(name), here.get(name), f"{field}.{name}" if field else str(name))
            if different is not None:
                return different
        return None
    return None if _text(saved) == _text(here) else (field or "mechanism", saved, here)


def _text(value: object) -> str:
    """Return a text that is equal for equal values, with tuples and lists alike."""
    try:
        return canonical_json(value)
    except (TypeError, ValueError):  # a value that no mechanism has
        return repr(value)
