"""What jobs' settings say of groups: how noise is shared between them, and their thresholds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dpbench.clipping.adaptive import Adaptive
from dpbench.errors import DpbenchError
from dpbench.mechanism import Clipping
from dpbench.validation import Strict


class AdaptiveSettings(Strict):
    """See dpbench.clipping.adaptive.Adaptive."""

    quantile: float = Field(gt=0, lt=1)
    rate: float = Field(0.3, gt=0, allow_inf_nan=False)
    budget: float = Field(0.01, gt=0, lt=1)
    rescale: bool = False

    def made(self) -> Adaptive:
        return Adaptive(**self.model_dump())


class GroupSettings(Strict):
    """Part of a job's clipping; see dpbench.mechanism.Clipping. What is not given is not part of a run's name."""

    allocation: Literal["global", "equal", "weighted"] = Field("global", exclude_if=lambda v: v == "global")
    devices: int | None = Field(None, ge=1, exclude_if=lambda v: v is None, description="Virtual devices of scope per_device.")
    given: list[float] | dict[str, float] | None = Field(
        None, exclude_if=lambda v: v is None, description="Thresholds, one a group in order or by its label, instead of a bound."
    )
    adaptive: AdaptiveSettings | None = Field(None, exclude_if=lambda v: v is None)

    def clipping_of(self, **rest: Any) -> Clipping:
        """The mechanism's, with what the job itself says in `rest`."""
        adaptive = self.adaptive.made() if self.adaptive is not None else None
        return Clipping(allocation=self.allocation, devices=self.devices, given=self.given, adaptive=adaptive, **rest)

    def must_stand(self, **rest: Any) -> None:
        """See that the clipping can be made, for a validator.

        Raises:
            ValueError: a combination that makes no sense.
        """
        if self.devices is not None or self.given is not None or self.adaptive is not None:
            try:
                self.clipping_of(**rest)
            except DpbenchError as error:
                raise ValueError(f"{error.what} ({error.way_out})") from error

    @property
    def policies(self) -> tuple[tuple[str, str], ...]:
        """Plug-ins that decide the numbers beside function and scope."""
        return (("threshold", "adaptive"),) if self.adaptive is not None else ()
