"""Public text for tokenizers, centring and public students. It holds nothing private. Never imports torch."""

from __future__ import annotations

from dpbench.data import registry as datasets
from dpbench.spec.sources import Source

PUBLIC = "wikitext2"
"""The dataset of public text."""
_WORDS = 8  # at least, in a line that counts as a sentence


def public_sentences(source: Source) -> list[str]:
    """Return the lines of the public text that are long enough to be sentences."""
    return [text for text in datasets.load(PUBLIC, "train", source).columns["text"] if len(text.split()) >= _WORDS]
