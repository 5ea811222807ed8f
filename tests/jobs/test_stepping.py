"""What a run by a zeroth-order method warns of, where a private one must not stop."""

from types import SimpleNamespace

import pytest

from dpbench.jobs.stepping import ZerothFit
from dpbench.methods.zeroth.trainer import SILENT


@pytest.mark.parametrize(
    ("ignored", "silence", "said"),
    [
        (0, SILENT - 1, []),
        (3, 0, ["3 examples had losses that are not finite and contributed 0"]),
        (0, SILENT, [f"no example's loss moved in {SILENT} steps one after another"]),
    ],
)
def test_warnings_name_lost_examples_and_losses_that_never_moved(ignored, silence, said):
    optimizer = SimpleNamespace(non_finite_examples=ignored, longest_silence=silence)
    warnings = ZerothFit(optimizer, [], [], None).warnings
    assert len(warnings) == len(said)
    assert all(warning.startswith(start) for warning, start in zip(warnings, said, strict=True))
