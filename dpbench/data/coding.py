"""Inputs and sentences of a table-to-text dataset as token ids. No tokenizer here is trained on the rows of the dataset.

`Pieces` is a BPE, either trained on public text or the one of a model. `Words` is small enough for a model of a million
parameters: a closed slot of the schema is one token, the value of an open slot (a name) is replaced by a placeholder in input and
text, and the words are public.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dpbench import plugins
from dpbench.data import registry
from dpbench.data.described import Field, linear
from dpbench.data.public import PUBLIC
from dpbench.data.tokenizer import EOS, PAD, bpe
from dpbench.errors import DpbenchError
from dpbench.files import canonical_json, sha256_text
from dpbench.spec.sources import Source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PUBLIC_SPLIT = "test"
"""The split that the BPE is trained on: the same as in the language_model job, so that its weights fit."""

SEPARATOR, UNKNOWN = "<sep>", "<unk>"
ENTITIES = 16
"""The number of placeholders where every subject and object is an open value."""

_WORD = re.compile(r"<\d+>|£?\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?|[^\w\s]")
_PLACE = re.compile(r"<\d+>")
_PUNCTUATION = ". , ' - ! ? ( ) : ; / &"


class Coding(Protocol):
    """A tokenizer of inputs and texts.

    Attributes:
        pad: the id of padding.
        eos: the id that ends a text.
        vocabulary: the number of ids.
        banned: ids that are never generated.
        sha256: the digest of the tokenizer, for the record.
    """

    pad: int
    eos: int
    vocabulary: int
    banned: list[int]
    sha256: str

    def prompt(self, fields: Sequence[Field]) -> list[int]:
        """Return the ids of an input, with a mark at the end."""

    def target(self, fields: Sequence[Field], text: str) -> list[int]:
        """Return the ids of a text for that input, with <eos> at the end."""

    def text(self, fields: Sequence[Field], ids: Iterable[int]) -> str:
        """Return generated ids as text; <eos> and what follows is left out."""


def coding(kind: Literal["words", "pieces"], name: str, size: int, public: Source) -> Coding:
    """Return the tokenizer of a table-to-text dataset.

    Args:
        size: for `words`, how many of the public text's words are taken, the most frequent first, beside those of the plug-in;
            for `pieces`, the vocabulary of the BPE.
        public: the source of `wikitext2`.
    """
    if kind == "words":
        return Words(name, size, public)
    tokenizer, sha256 = bpe(PUBLIC, size, public, PUBLIC_SPLIT)
    return Pieces(tokenizer, size, tokenizer.token_to_id(PAD), tokenizer.token_to_id(EOS), sha256)


def most_words(name: str, size: int) -> int:
    """Return the largest vocabulary that `Words` can have, without reading any text."""
    return len(_fixed(name)) + len(_schema_words(name)) + size


class Pieces:
    """A BPE: `name : The Mill | area : riverside <eos>` -> ` The Mill is by the river. <eos>`."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, pad: int | None, eos: int | None, sha256: str) -> None:
        """Wrap a tokenizer.

        Raises:
            DpbenchError: the tokenizer lacks a mark, or an id is beyond the vocabulary.
        """
        for mark, number in (("padding", pad), ("the end of a text", eos)):
            if number is None or tokenizer.id_to_token(number) is None or number >= vocabulary:
                fault = "no id" if number is None else f"id {number}, which it lacks,"
                raise DpbenchError(
                    f"the tokenizer has {fault} for {mark}", "fetch the model again: its tokenizer.json is another's"
                )
        assert pad is not None
        assert eos is not None
        self._tokenizer, self.vocabulary, self.pad, self.eos, self.sha256 = tokenizer, vocabulary, pad, eos, sha256
        self.banned = [*{pad} - {eos}, *range(tokenizer.get_vocab_size(), vocabulary)]

    def ids(self, text: str) -> list[int]:
        """Return the ids of an unchanged text, without a mark."""
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return token_ids

    def prompt(self, fields: Sequence[Field]) -> list[int]:
        return [*self.ids(linear(fields)), self.eos]

    def target(self, fields: Sequence[Field], text: str) -> list[int]:
        return [*self.ids(f" {text}"), self.eos]

    def text(self, fields: Sequence[Field], ids: Iterable[int]) -> str:
        return str(self._tokenizer.decode(_until(ids, self.eos))).strip()


class Words:
    """Lower-case words, placeholders <0>, <1>, ... for open values and, where there is a schema, one token a closed slot."""

    def __init__(self, name: str, size: int, public: Source) -> None:
        fixed = _fixed(name)
        lines = registry.load(PUBLIC, "train", public).columns["text"]
        counts = Counter(word for line in lines for word in line.lower().split())
        common = sorted((word for word in counts if word.isalpha()), key=lambda word: (-counts[word], word))[:size]
        tokens = [*fixed, *sorted({*_schema_words(name), *common})]
        self.slots = _slots(name)
        self._id = {token: number for number, token in enumerate(tokens)}
        self._token = tokens
        self.vocabulary, self.sha256 = len(tokens), sha256_text(canonical_json(tokens))
        self.pad, self.eos, self._unknown = self._id[PAD], self._id[EOS], self._id[UNKNOWN]
        generated = {EOS, *(token for token in fixed if _PLACE.fullmatch(token))}
        self.banned = [self._id[token] for token in fixed if token not in generated]

    def _ids(self, tokens: Iterable[str]) -> list[int]:
        return [self._id.get(token, self._unknown) for token in tokens]

    def prompt(self, fields: Sequence[Field]) -> list[int]:
        values = self._values(fields)
        if self.slots:
            value_of_slot: dict[str, str] = {slot: value for slot, value in fields}
            return self._ids(
                [
                    *(_slot_token(slot, closed_values, value_of_slot.get(slot)) for slot, closed_values in self.slots.items()),
                    SEPARATOR,
                ]
            )
        tokens = [token for field in fields for part in field for token in _split(_hidden(_spaced(part), values))]
        return self._ids([*tokens, SEPARATOR])

    def target(self, fields: Sequence[Field], text: str) -> list[int]:
        return self._ids([*_split(_hidden(text, self._values(fields))), EOS])

    def text(self, fields: Sequence[Field], ids: Iterable[int]) -> str:
        values = self._values(fields)
        places = {f"<{place}>": value for place, value in enumerate(values) if value}
        tokens = [self._token[i] for i in _until(ids, self.eos)]
        text = _joined([token for token in tokens if token in places or not _PLACE.fullmatch(token)])
        text = re.sub(r"(^|[.!?] )([^\W\d_])", lambda m: m[1] + m[2].upper(), text)
        return _PLACE.sub(lambda m: places[m[0]], text)

    def _values(self, fields: Sequence[Field]) -> list[str | None]:
        """Return the value of each placeholder; None where the input has no such slot."""
        if self.slots:
            value_of_slot: dict[str, str] = {slot: value for slot, value in fields}
            return [value_of_slot.get(slot) for slot, closed_values in self.slots.items() if closed_values is None]
        entities: dict[str | None, None] = dict.fromkeys(entity for field in fields for entity in (field[0], field[-1]))
        return [*entities][:ENTITIES]


def _slots(name: str) -> dict[str, list[str] | None]:
    slots: dict[str, list[str] | None] = plugins.get("dataset", name).extra.get("slots", {})
    return slots


def _slot_token(slot: str, closed_values: list[str] | None, value: str | None) -> str:
    if not value:
        return f"{slot}=none"
    return f"{slot}=other" if closed_values is None or value not in closed_values else f"{slot}={value}"


def _fixed(name: str) -> list[str]:
    """Return marks, placeholders and slot tokens, in the order of their ids."""
    slots = _slots(name)
    placeholders = sum(closed_values is None for closed_values in slots.values()) if slots else ENTITIES
    tokens = [PAD, EOS, SEPARATOR, UNKNOWN, *(f"<{i}>" for i in range(placeholders))]
    for slot, closed_values in slots.items():
        tokens += [f"{slot}={value}" for value in ("none", "other", *(closed_values or ()))]
    return tokens


def _schema_words(name: str) -> set[str]:
    """Return the words of the schema and of the plug-in's list."""
    extra: dict[str, Any] = plugins.get("dataset", name).extra
    values = [value for closed_values in _slots(name).values() for value in closed_values or ()]
    return {token for text in (*values, extra.get("words", ""), _PUNCTUATION) for token in _split(text)}


def _split(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _spaced(relation: str) -> str:
    """Split a relation into words: `cityServed` -> `city Served`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", relation)


def _hidden(text: str, values: Sequence[str | None]) -> str:
    """Return the text in lower case with every occurrence of a value replaced by its placeholder, the longest value first."""
    pattern, places = _finder(tuple(values))
    return pattern.sub(lambda m: f" <{places[m[0]]}> ", text.lower()) if places else text.lower()


@lru_cache(maxsize=8192)  # an input has several texts, and `re` itself keeps few patterns
def _finder(values: tuple[str | None, ...]) -> tuple[re.Pattern[str], dict[str, int]]:
    """Return a pattern that matches values in lower case, the longest first, and the place of each value."""
    places = {value.lower(): place for place, value in reversed([*enumerate(values)]) if value}
    pattern = "|".join(re.escape(value) for value in sorted(places, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)"), places


def _joined(tokens: Sequence[str]) -> str:
    text = " ".join(tokens)
    text = re.sub(r" ([.,;:!?)])", r"\1", text)
    text = re.sub(r"\( ", "(", text)
    text = re.sub(r" ([-/]) ", r"\1", text)
    return re.sub(r" ' ?(?=s\b)", "'", text)


def _until(ids: Iterable[int], eos: int) -> list[int]:
    text_ids = []
    for token_id in ids:
        if token_id == eos:
            break
        text_ids.append(int(token_id))
    return text_ids
