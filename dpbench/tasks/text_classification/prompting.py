"""Classification by filling a mask: a prompt around the text, and the masked language model's logits of a word a class.

Source: Gao et al., ACL 2021 (LM-BFF); the prompts are those of Malladi et al., NeurIPS 2023 (MeZO), which DPZero takes.
Imports torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.models import sources
from dpbench.models.checkpoints import tensors_of
from dpbench.models.text import TextTokenizer
from dpbench.models.wrappers import Encoder
from dpbench.spec.sources import Source

MASK = "{mask}"

_HEADS = {  # family -> names in a checkpoint
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
}


@dataclass(frozen=True)
class Prompt:
    """How a task's texts are put. template: with {text}, {text_pair} of pairs, and one {mask}; words: one for each class.

    mask: the tokenizer's text for the mask, and its id; word_ids: of each class, in their order.
    """

    template: str
    mask: str
    mask_id: int
    word_ids: list[int]

    @classmethod
    def of(cls, task: str, tokenizer: TextTokenizer) -> Prompt:
        """Return the prompt that the dataset declares.

        Raises:
            DpbenchError: it declares none; the tokenizer has no mask; a label word is not one token.
        """
        template, words = _declared(task)
        ids = {text: tokenizer.tokenizer.token_to_id(text) for text in ("<mask>", "[MASK]")}
        known = [(text, number) for text, number in ids.items() if number is not None]
        if not tokenizer.published or not known:
            raise DpbenchError("head: prompt needs a masked language model's tokenizer", "take head: zero for random weights")
        return cls(template, *known[0], [_one_token(tokenizer, word, task) for word in words])

    def encode(
        self, tokenizer: TextTokenizer, texts: Sequence[str], pairs: Sequence[str] | None, longest: int
    ) -> list[list[int]]:
        """Return the ids of each example in its prompt, at most `longest`.

        The texts lose words from their ends, the longer one first, and the prompt none.

        Raises:
            DpbenchError: the prompt alone is longer.
        """
        inner = tokenizer.tokenizer
        inner.no_truncation()
        encoded = []
        for number, text in enumerate(texts):
            words = [text.split(" "), pairs[number].split(" ") if pairs is not None else []]
            while True:
                first, second = (" ".join(part) for part in words)
                prompt = self.template.replace(MASK, self.mask).replace("{text_pair}", second).replace("{text}", first)
                ids = inner.encode(prompt).ids
                if len(ids) <= longest:
                    break
                longer = max(words, key=len)
                if not longer:
                    raise DpbenchError(f"max_length {longest} leaves no room for the prompt", f"use {len(ids)} or more")
                del longer[-max(1, (len(ids) - longest) // 4) :]
            encoded.append(ids)
        return encoded

    def places(self, ids: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """Return the position [N] of each input's mask token."""
        return np.asarray([list(row).index(self.mask_id) for row in ids])


def filled(task: str) -> list[str]:
    """Return the prompt around no text, with each class's label word for the mask: a sentence a class, all public.

    Raises:
        DpbenchError: the dataset declares no prompt.
    """
    template, words = _declared(task)
    bare = template.replace("{text_pair}", "").replace("{text}", "")
    return [bare.replace(MASK, word).strip() for word in words]


def _declared(task: str) -> tuple[str, list[str]]:
    """Return the template of a dataset's prompt, and the label word of each class in their order."""
    extra = plugins.get("dataset", task).extra
    if (declared := extra.get("prompt")) is None:
        raise DpbenchError(f"dataset {task} declares no prompt", "take head: zero, or add one to its plug-in")
    return declared["template"], [declared["words"][name] for name in extra["classes"]]


def _one_token(tokenizer: TextTokenizer, word: str, task: str) -> int:
    """Return the id of a word inside a sentence: with the space before it, where the tokenizer codes that."""
    for spelt in (f" {word}", word):
        ids = tokenizer.tokenizer.encode(spelt, add_special_tokens=False).ids
        if len(ids) == 1:
            return int(ids[0])
    tokens = tokenizer.tokenizer.encode(f" {word}", add_special_tokens=False).tokens
    raise DpbenchError(f"label word {word!r} of {task} is {len(tokens)} tokens: {' '.join(tokens)}", "choose a word of one token")


class Prompted(nn.Module):
    """Encoder, the hidden state at the mask, and a masked language model's head with the rows of the label words alone."""

    def __init__(self, encoder: Encoder, classes: int, epsilon: float) -> None:
        super().__init__()
        width, self.encoder = encoder.width, encoder
        layers = {"dense": nn.Linear(width, width), "gelu": nn.GELU(), "norm": nn.LayerNorm(width, eps=epsilon)}
        self.head = nn.Sequential(OrderedDict(layers, out=nn.Linear(width, classes)))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.encoder(batch["input_ids"], batch["attention_mask"])
        at = batch["mask_at"][:, None, None].expand(-1, 1, hidden.shape[-1])
        return self.head(hidden.gather(1, at)[:, 0])


def prompted(name: str, encoder: Encoder, classes: int, source: Source | None, words: Sequence[int] = ()) -> Prompted:
    """Return the encoder with its head for the label words, their rows as copies of the tied embedding's.

    Args:
        name: of the model plug-in; source: of its weights, None without reading any file (the head is then random).

    Raises:
        DpbenchError: the checkpoint has no such head.
    """
    plugin = plugins.get("model", name)
    model = Prompted(encoder, classes, plugin.extra["architecture"]["layer_norm_eps"])
    if source is None or source.kind == "scratch":
        return model
    dense, norm, bias = _HEADS[plugin.extra["family"]]
    names = {f"{dense}.weight", f"{dense}.bias", f"{norm}.weight", f"{norm}.bias", bias}
    tensors = tensors_of(sources.file_of(plugin, source, sources.WEIGHTS), names)
    rows = torch.as_tensor(list(words))
    state = {f"dense.{kind}": tensors[f"{dense}.{kind}"] for kind in ("weight", "bias")}
    state |= {f"norm.{kind}": tensors[f"{norm}.{kind}"] for kind in ("weight", "bias")}
    state["out.weight"] = encoder.model.embeddings.word_embeddings.weight[rows]
    model.head.load_state_dict(state | {"out.bias": tensors[bias][rows]})
    return model
