"""NAME: say here what is trained and what is measured."""

from __future__ import annotations

from dpbench.execution.contract import Context, Outcome
from dpbench.spec.expand import Uses
from dpbench.training.config import TrainingSettings

# A task is a job that calls the one trainer. `parents` names the jobs whose runs it reads, if there are any.
PLUGIN = {"kind": "job", "name": "NAME", "version": 1, "summary": "what is trained and measured, in one line"}


class Settings(TrainingSettings):
    """Settings of one cell. Method, clipping, epsilon, steps and optimizer are inherited; add what the task needs."""

    examples: int = 256


def uses(settings: Settings) -> Uses:
    """Return the plug-ins, datasets and models that decide the numbers: their versions and files are part of a run's name."""
    return Uses(plugins=tuple(settings.deciding_plugins))


def run(settings: Settings, context: Context) -> Outcome:
    """Train and evaluate. torch is imported here, so that a dry run of all tables stays quick."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    from dpbench.privacy.sampling import physical_batches
    from dpbench.training.run import TrainingTask, train

    class Task(TrainingTask):
        """Two clouds of points; an example is one point."""

        units = {"accuracy": "%"}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__(settings)
            generator = torch.Generator().manual_seed(context.seed)
            self.labels = torch.randint(0, 2, (settings.examples,), generator=generator)
            self.points = torch.randn(settings.examples, 8, generator=generator) + self.labels[:, None]
            self.rows = settings.examples
            torch.manual_seed(context.seed)
            self.model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))

        def __len__(self) -> int:
            return settings.examples

        def physical(self, drawn: np.ndarray):
            return physical_batches(drawn, 128)

        def batch(self, rows: np.ndarray):
            return {"points": self.points[rows], "label": self.labels[rows]}

        def losses(self, model, batch):
            """Return the losses [B], each a function of that example alone."""
            return cross_entropy(model(batch["points"]), batch["label"], reduction="none")

        def evaluate(self) -> dict[str, float]:
            self.model.eval()
            with torch.no_grad():
                right = self.model(self.points).argmax(1) == self.labels
            return {"accuracy": 100 * float(right.float().mean())}

    return train(settings, Task(), context, curve_points=5)


def check(settings: Settings, sources) -> list[str]:
    """Return remarks of a dry run, for `python -m dpbench check`."""
    return [f"{settings.examples} examples"]
