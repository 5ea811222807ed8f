"""The average of weights over steps, which is evaluated in place of the last ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dpbench.training.callbacks import WeightAverage


def test_the_average_is_that_of_its_formula():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    trainer = SimpleNamespace(model=model)
    average, expected = WeightAverage(model, 0.5), 0.0
    for step in range(12):
        with torch.no_grad():
            model.weight.fill_(step + 1.0)
        average.step_done(trainer)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1.0)
    average.training_done(trainer)
    assert float(model.weight.detach()) == pytest.approx(expected, rel=1e-6)
