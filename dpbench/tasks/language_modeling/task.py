"""The task: data, model, losses and validation loss of a language model that is pre-trained from scratch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpbench.data import registry as datasets
from dpbench.data.tokenizer import bpe, token_blocks
from dpbench.execution.contract import Context
from dpbench.methods.engines.layers import lay_out
from dpbench.models import registry as models
from dpbench.privacy.mechanism import Clipping
from dpbench.privacy.sampling import physical_batches
from dpbench.tasks.forward import attention, autocast
from dpbench.tasks.language_modeling.config import Settings
from dpbench.training.run import TrainingTask

_TOKENIZER_SPLIT = "test"
"""The tokenizer comes from text that is neither trained on nor evaluated on, so that it tells nothing of the private blocks."""


class LanguageModelingTask(TrainingTask):
    """Blocks of tokens, and the model with its initial weights, the same for all methods of a seed.

    Raises:
        DpbenchError: a split does not fill one block.
    """

    units = {"validation_loss": "nats/token", "perplexity": ""}  # noqa: RUF012

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings)
        source = context.sources[f"dataset:{settings.dataset}"]
        tokenizer, sha256 = bpe(settings.dataset, vocabulary_of(settings), source, _TOKENIZER_SPLIT)

        def blocks(split: str, count: int) -> np.ndarray[Any, Any]:
            texts = datasets.load(settings.dataset, split, source).columns["text"]
            filled = token_blocks(tokenizer, texts, settings.tokens, count)
            if len(filled) < count:
                self.warnings.append(f"the {split} text fills {len(filled)} blocks of {settings.tokens} tokens, not {count}")
            return filled

        if settings.evaluate_on == "train_rest":
            both = blocks("train", settings.train_blocks + settings.validation_blocks)
            train, validation = np.split(both, [-settings.validation_blocks])
        else:
            train, validation = blocks("train", settings.train_blocks), blocks("validation", settings.validation_blocks)
        self.train, self.validation = torch.as_tensor(train), torch.as_tensor(validation)
        self.model = model_of(settings, seed=context.seed).to(self.device)
        self.rows, self.groups = len(self.train), groups_of(settings, self.model)
        # Of a model that knows the train blocks' token frequencies and nothing else, each once more than it is; not private.
        counts = np.bincount(train.ravel(), minlength=vocabulary_of(settings)) + 1.0
        self.facts = {
            "example": f"one block of {settings.tokens} tokens",
            "groups": self.groups,
            "train_blocks": len(train),
            "validation_blocks": len(validation),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "evaluated_tokens": validation.size - len(validation),
            "unigram_loss": float(-np.log(counts / counts.sum())[validation[:, 1:]].mean()),
            "tokenizer_sha256": sha256,
            "tokenizer_split": _TOKENIZER_SPLIT,
            "tokenizer_vocabulary": tokenizer.get_vocab_size(),
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.settings, self.model)

    def physical(self, drawn: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        return physical_batches(drawn, self.blocks_at_once)

    def batch(self, rows: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """Return input_ids [B, T]."""
        return {"input_ids": self.train[torch.as_tensor(rows)].to(self.device)}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return [B] mean cross entropies of a block's next tokens."""
        with autocast(self.device, self.settings.precision), attention(self.device, self.settings.functional):
            return models.language_model_losses(model, batch)

    def evaluate(self) -> dict[str, float]:
        """Return the mean loss over the validation blocks, and the perplexity that it is."""
        self.model.eval()
        total = 0.0
        with torch.no_grad():
            for part in self.validation.split(self.blocks_at_once):
                total += float(self.losses(self.model, {"input_ids": part.to(self.device)}).double().sum())
        loss = total / len(self.validation)
        return {"validation_loss": loss, "perplexity": math.exp(loss)}

    @property
    def blocks_at_once(self) -> int:
        """Blocks of a physical batch."""
        return max(1, self.settings.token_budget // self.settings.tokens)

    def save(self, path: Path) -> None:
        """Save the weights as safetensors; a tied head is left out, being the embedding."""
        from safetensors.torch import save_file

        kept = {id(t): (n, t) for n, t in reversed(list(self.model.state_dict(keep_vars=True).items()))}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in kept.values()}, path)


def vocabulary_of(settings: Settings) -> int:
    """Return the tokens of tokenizer and model."""
    return settings.vocabulary or models.language_model_size(settings.size)["vocabulary"]


def model_of(settings: Settings, seed: int = 0, meta: bool = False) -> nn.Module:
    """Return the model in training mode, with exactly T positions: none is trained that no block reaches."""
    model = models.language_model(
        settings.size, seed=seed, tied=settings.tied, meta=meta, vocabulary=vocabulary_of(settings), context=settings.tokens
    )
    return model.train()


def groups_of(settings: Settings, model: nn.Module) -> int:
    """Return K, the groups that the clipping's scope makes of the model; 0 without clipping."""
    if settings.clipping is None:
        return 0
    return len(lay_out(model, Clipping(scope=settings.clipping.scope, devices=settings.clipping.devices)).groups)


def parameter_groups(settings: Settings, model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters with weight decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    decay = settings.optimizer.weight_decay
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
