"""A byte-level BPE trained once on public text, and text cut into blocks of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpbench import paths, plugins
from dpbench.data import registry
from dpbench.errors import DpbenchError
from dpbench.files import canonical_json, sha256_text, write_cache
from dpbench.spec.sources import Source

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

PAD, EOS = "<pad>", "<eos>"
SMALLEST = 256 + 2  # every byte, <pad>, <eos>
RECIPE = 1


def _cache_file(name: str, vocabulary: int, source: Source, split: str) -> Path:
    import tokenizers

    identity: dict[str, Any] = {
        "dataset": name,
        "version": plugins.get("dataset", name).version,
        "source": source.identity,
        "vocabulary": vocabulary,
        "tokenizers": tokenizers.__version__,
        "recipe": RECIPE,
    }
    if split != "train":  # left out for train: tokenizers that were cached before there was a choice keep their name
        identity["split"] = split
    key = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]
    return paths.cache() / "tokenizers" / f"{name}-{vocabulary}-{key}.json"


def _cached(path: Path) -> str | None:
    """Return the JSON of a tokenizer; None where the file is absent or damaged."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        text, sha256 = str(entry["tokenizer"]), entry["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return text if sha256_text(text) == sha256 else None


def _train(texts: Sequence[str], vocabulary: int) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token that the tokenizer has, such as one of its marks."""
    number: int | None = tokenizer.token_to_id(token)
    assert number is not None, token
    return number


def bpe(name: str, vocabulary: int, source: Source, split: str = "train") -> tuple[Tokenizer, str]:
    """Return the BPE of a public text; it is trained on first use and kept in the cache folder.

    Args:
        name: the dataset. Its text must be public, because the tokenizer does not protect it; what a private run trains on is not
            public.
        vocabulary: the largest number of tokens, <pad> = 0 and <eos> = 1 included (a small text may give fewer).
        split: the split of the dataset.

    Returns:
        The tokenizer and the sha256 of its JSON, for the record.

    Raises:
        DpbenchError: the vocabulary is below 258; what `registry.load` raises.
    """
    from tokenizers import Tokenizer

    if vocabulary < SMALLEST:
        raise DpbenchError(f"tokenizer on {name}: vocabulary {vocabulary} is below {SMALLEST}", "every byte needs a token")
    path = _cache_file(name, vocabulary, source, split)
    text = _cached(path)
    if text is None:
        text = _train(registry.load(name, split, source).columns["text"], vocabulary)
        write_cache(path, json.dumps({"sha256": sha256_text(text), "tokenizer": text}))
    return Tokenizer.from_str(text), sha256_text(text)


def token_blocks(tokenizer: Tokenizer, texts: Sequence[str], block: int, limit: int | None = None) -> np.ndarray[Any, Any]:
    """Concatenate the texts, with <eos> after each, and cut them into blocks; empty texts and the last tokens are left out.

    Args:
        block: T, the tokens of a block.
        limit: the largest number of blocks; the texts after them are not even encoded.

    Returns:
        int64 [N, T].

    Raises:
        DpbenchError: the texts do not fill one block.
    """
    import numpy as np

    eos = id_of(tokenizer, EOS)
    token_limit = None if limit is None else limit * block
    tokens: list[int] = []
    filled = [text for text in texts if text]
    for start in range(0, len(filled), 1024):
        for encoded in tokenizer.encode_batch(filled[start : start + 1024], add_special_tokens=False):
            tokens += encoded.ids
            tokens.append(eos)
        if token_limit is not None and len(tokens) >= token_limit:
            break
    count = len(tokens) // block
    if limit is not None:
        count = min(count, limit)
    if count == 0:
        raise DpbenchError(f"{len(tokens)} tokens do not fill one block of {block}", "use more text or shorter blocks")
    return np.asarray(tokens[: count * block], dtype=np.int64).reshape(count, block)
