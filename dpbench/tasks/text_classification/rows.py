"""Which training rows can be drawn, which are held out, and which a public rule leaves out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from dpbench.data import registry as datasets
from dpbench.errors import unknown
from dpbench.tasks.holdout import is_held_out, share_of
from dpbench.tasks.text_classification.config import Settings


def kept_rows(settings: Settings, labels: np.ndarray, texts: Callable[[], list[str]], classes: list[str]) -> np.ndarray:
    """Return the indices of the rows that `class_keep` leaves.

    Guarantee: whether a row stays depends on its texts and label and on public constants alone, so adding or removing one
    row changes one row of what is left: the mechanism's epsilon is that of the full dataset. Copies of a row are kept together.

    Args:
        labels: [N]; texts: gives the text that identifies each row, and is asked only where something is left out.

    Raises:
        DpbenchError: a share of a class that the dataset does not have.
    """
    for name in settings.class_keep:
        if name not in classes:
            raise unknown("class", name, classes, f"class_keep of {settings.dataset}")
    share = np.asarray([settings.class_keep.get(name, 1.0) for name in classes])
    if (share == 1).all():
        return np.arange(len(labels))
    draw = np.asarray([share_of(text.encode()) for text in texts()])
    return np.flatnonzero(draw < share[labels])


class RowSplit:
    """Which training rows can be drawn, and which are held out to be evaluated on, where the settings ask for that.

    drawn, held_out: indices, both of rows that `class_keep` leaves; held_out None: another split is evaluated on.
    rows: n, training rows without those held out and before `class_keep`, which is what the mechanism protects; with
    `per_class` the rows of that choice, which is then the dataset. warnings: of classes with fewer rows than `per_class`.

    Guarantee: a row's place among the others decides nothing. `class_keep` and `held_out` look at one row's texts and label, so
    removing a row leaves all others where they were. `per_class` orders the rows of a class by a hash of the public seed and
    their texts and takes the first: removing a row that was not chosen changes nothing, and removing one that was lets the next
    of its class in, if there is one. So epsilon holds between choices that differ by one row, as the mechanism's relation says;
    between full datasets of which one has a row more, the choices differ by one row removed and one added: group privacy of
    two rows under `add_or_remove`, the relation itself under `replace_one`.
    """

    def __init__(self, settings: Settings, labels: np.ndarray, texts: Callable[[], list[str]], seed: int) -> None:
        """labels: [N]; texts: gives what identifies each row, asked only where rows are chosen; seed: of `per_class`."""
        classes = datasets.classes(settings.dataset)
        texts = cache(texts)
        self.drawn = kept_rows(settings, labels, texts, classes)
        self.held_out: np.ndarray | None = None
        self.warnings: list[str] = []
        self.rows = len(labels)
        if settings.evaluate_on == "train_rest":
            out = is_held_out((text.encode() for text in texts()), settings.held_out, settings.dataset)
            self.rows -= int(out.sum())
            self.drawn, self.held_out = self.drawn[~out[self.drawn]], self.drawn[out[self.drawn]]
        if settings.per_class is not None:
            self._choose(settings.per_class, labels, texts(), classes, seed)
            self.rows = len(self.drawn)

    def _choose(self, count: int, labels: np.ndarray, texts: list[str], classes: list[str], seed: int) -> None:
        """Choose `count` rows of each class, others for another seed."""
        order = np.argsort([share_of(f"{seed} {texts[i]}".encode()) for i in self.drawn], kind="stable")
        shuffled = self.drawn[order]
        chosen = []
        for number, name in enumerate(classes):
            of_class = shuffled[labels[shuffled] == number][:count]
            if len(of_class) < count:
                self.warnings.append(
                    f"{len(of_class)} rows of class {name}, where {count} were asked for: n counts those there are"
                )
            chosen.append(of_class)
        self.drawn = np.sort(np.concatenate(chosen))
