"""Text to token ids, with the tokenizer of a model or one trained on public text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpbench import plugins
from dpbench.data.coding import Pieces
from dpbench.data.digests import digest
from dpbench.data.public import PUBLIC
from dpbench.data.tokenizer import EOS, PAD, bpe, id_of
from dpbench.errors import DpbenchError
from dpbench.models import sources
from dpbench.spec.sources import Source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LARGEST = 8192
"""The largest vocabulary of a tokenizer trained here: public text of a few megabytes does not give many more."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer of texts for a model.

    Attributes:
        pad: the id of padding.
        vocabulary: the number of ids.
        sha256: the digest of the tokenizer's JSON, for the record.
        published: whether it is the published tokenizer of the model, which marks begin and end ([CLS], [SEP]); else only <eos>
            is added at the end.
    """

    tokenizer: Tokenizer
    pad: int
    vocabulary: int
    sha256: str
    published: bool

    def encode(self, texts: Sequence[str], max_length: int, pairs: Sequence[str] | None = None) -> list[list[int]]:
        """Return the ids of each text, at most `max_length` with its marks, without padding; never empty.

        Args:
            pairs: a second text for each, which follows the first in the same input; the longer of the two is cut first.

        Raises:
            DpbenchError: `max_length` leaves no room for a token of each text beside the marks.
        """
        parts = 1 if pairs is None else 2
        marks = self.tokenizer.num_special_tokens_to_add(is_pair=parts == 2) if self.published else parts
        if max_length < marks + parts:
            raise DpbenchError(f"max_length {max_length} leaves no room for text", f"use more than {marks + parts - 1}")
        if self.published:
            self.tokenizer.enable_truncation(max_length)  # counts the marks
            inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
            return [e.ids for e in self.tokenizer.encode_batch(inputs)]
        end = id_of(self.tokenizer, EOS)
        first = [e.ids for e in self.tokenizer.encode_batch(list(texts))]
        if pairs is None:
            return [[*ids[: max_length - 1], end] for ids in first]
        second = [e.ids for e in self.tokenizer.encode_batch(list(pairs))]
        cut = [cut_longer_first(a, b, max_length - marks) for a, b in zip(first, second, strict=True)]
        return [[*a, end, *b, end] for a, b in cut]


def cut_longer_first(first: list[int], second: list[int], most_ids: int) -> tuple[list[int], list[int]]:
    """Cut two lists to at most `most_ids` ids together, first the longer one, then both equally."""
    length_of_first = min(len(first), max(most_ids - len(second), (most_ids + 1) // 2))
    return first[:length_of_first], second[: most_ids - length_of_first]


def text_tokenizer(name: str, source: Source, public_source: Source) -> TextTokenizer:
    """Return the tokenizer of an encoder: the published one for real weights, else a BPE of public text (`wikitext2`).

    Args:
        source: the source of the model.
        public_source: the source of `wikitext2`, which is read only for random weights.

    Raises:
        DpbenchError: the model has no text tokenizer; its file is gone or damaged.
    """
    plugin = plugins.get("model", name)
    if "vocab_size" not in plugin.extra.get("architecture", {}):
        raise DpbenchError(f"model {name} has no text tokenizer", "use dpbench.data.tokenizer.bpe")
    size = plugin.extra["architecture"]["vocab_size"]
    if source.kind == "scratch":
        tokenizer, sha256 = bpe(PUBLIC, min(size, LARGEST), public_source)
        return TextTokenizer(tokenizer, id_of(tokenizer, PAD), size, sha256, published=False)
    from tokenizers import Tokenizer

    path = sources.file_of(plugin, source, sources.TOKENIZER)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DpbenchError(f"{path}: not a readable tokenizer ({error})", "fetch the model again") from error
    tokenizer.no_padding()  # the file may state both, for other uses
    tokenizer.no_truncation()
    return TextTokenizer(tokenizer, plugin.extra["architecture"]["pad_token_id"], size, digest(path), published=True)


def published_coding(weights: str, source: Source, public_source: Source) -> Pieces:
    """Return the tokenizer of a language model with published weights; for random weights in their place, one of public text.

    Args:
        weights: the model plug-in.
        source: the source of its weights.
        public_source: the source of the public text.
    """
    tokenizer = text_tokenizer(weights, source, public_source)
    eos: int = plugins.get("model", weights).extra["architecture"]["eos_token_id"]
    if not tokenizer.published:
        eos = id_of(tokenizer.tokenizer, EOS)
    return Pieces(tokenizer.tokenizer, tokenizer.vocabulary, tokenizer.pad, eos, tokenizer.sha256)
