"""Model, data and loop of the language_model job. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpbench import engines
from dpbench.data import registry as datasets
from dpbench.data.tokenizer import bpe, token_blocks
from dpbench.engines.base import Handle
from dpbench.engines.layers import lay_out
from dpbench.jobs import language_model as job
from dpbench.jobs.contract import Context
from dpbench.jobs.drawing import watched
from dpbench.mechanism import Clipping, Mechanism
from dpbench.models import registry as models
from dpbench.sampling import physical_batches

if TYPE_CHECKING:
    from dpbench.jobs.language_model import Optimizer, Settings

_TOKENIZER_SPLIT = "test"
"""The tokenizer is made of text that is neither trained on nor evaluated on, so that it tells nothing of the private blocks."""


class Task:
    """Blocks of tokens, and the model with its initial weights, the same for all methods of a seed.

    Raises:
        DpbenchError: a split does not fill one block.
    """

    def __init__(self, settings: Settings, context: Context) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        source = context.sources[f"dataset:{settings.dataset}"]
        tokenizer, sha256 = bpe(settings.dataset, vocabulary_of(settings), source, _TOKENIZER_SPLIT)

        self.warnings: list[str] = []

        def blocks(split: str, wanted: int) -> np.ndarray[Any, Any]:
            texts = datasets.load(settings.dataset, split, source).columns["text"]
            found = token_blocks(tokenizer, texts, settings.tokens, wanted)
            if len(found) < wanted:
                self.warnings.append(f"the {split} text fills {len(found)} blocks of {settings.tokens} tokens, not {wanted}")
            return found

        if settings.evaluate_on == "train_rest":
            both = blocks("train", settings.train_blocks + settings.validation_blocks)
            train, validation = np.split(both, [-settings.validation_blocks])
        else:
            train, validation = blocks("train", settings.train_blocks), blocks("validation", settings.validation_blocks)
        self.train, self.validation = torch.as_tensor(train), torch.as_tensor(validation)
        self.model = model_of(settings, seed=context.seed).to(self.device)
        self.groups = groups_of(settings, self.model)
        self.facts = {
            "train_blocks": len(train),
            "validation_blocks": len(validation),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "evaluated_tokens": validation.size - len(validation),
            "unigram_loss": unigram_loss(train, validation, vocabulary_of(settings)),
            "tokenizer_sha256": sha256,
            "tokenizer_split": _TOKENIZER_SPLIT,
            "tokenizer_vocabulary": tokenizer.get_vocab_size(),
        }

    def batch(self, rows: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """input_ids [B, T]."""
        return {"input_ids": self.train[torch.as_tensor(rows)].to(self.device)}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """[B] mean cross entropies of a block's own next tokens."""
        with (
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bfloat16"),
            self._attention(),
        ):
            return models.language_model_losses(model, batch)

    def _attention(self) -> AbstractContextManager[None]:
        """Plain products under vmap, which has no rule for the fused kernel, and on the CPU, where it is slow on short blocks."""
        plain = self.device.type == "cpu" or self.settings.engine == "vmap"
        return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

    def evaluate(self) -> float:
        """Mean loss over the validation blocks, nats a token."""
        self.model.eval()
        total = 0.0
        with torch.no_grad():
            for part in self.validation.split(self.physical):
                total += float(self.losses(self.model, {"input_ids": part.to(self.device)}).double().sum())
        self.model.train()
        return total / len(self.validation)

    @property
    def physical(self) -> int:
        """Blocks of a physical batch."""
        return max(1, self.settings.token_budget // self.settings.tokens)

    def save(self, path: Path) -> None:
        """The weights, as safetensors; a tied head is left out, being the embedding."""
        from safetensors.torch import save_file

        kept = {id(t): (n, t) for n, t in reversed(list(self.model.state_dict(keep_vars=True).items()))}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in kept.values()}, path)


@dataclass
class Trained:
    """curve: [steps done, validation loss]; clipped: fraction a non-empty step, not private; drawn: examples of all steps;
    thresholds: facts of adaptive ones."""

    curve: list[list[float]] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)
    drawn: int = 0
    ignored: int = 0
    unprotected: list[str] = field(default_factory=list)
    thresholds: dict[str, Any] = field(default_factory=dict)


def vocabulary_of(settings: Settings) -> int:
    return settings.vocabulary or models.language_model_size(settings.size)["vocabulary"]


def model_of(settings: Settings, seed: int = 0, meta: bool = False) -> nn.Module:
    """The model in training mode, with exactly T positions: none is trained that no block reaches."""
    made = models.language_model(
        settings.size, seed=seed, tied=settings.tied, meta=meta, vocabulary=vocabulary_of(settings), context=settings.tokens
    )
    return made.train()


def groups_of(settings: Settings, model: nn.Module) -> int:
    """K: groups that the clipping's scope makes of the model; 0 without clipping."""
    if settings.clipping is None:
        return 0
    return len(lay_out(model, Clipping(scope=settings.clipping.scope, devices=settings.clipping.devices)).groups)


def optimizer(settings: Optimizer, model: nn.Module) -> torch.optim.AdamW:
    """AdamW whose weight decay is on matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate)


def attach(settings: Settings, model: nn.Module, stepper: torch.optim.Optimizer, plan: Mechanism) -> Handle:
    """The engine of the settings: ours, a peer's, or a paper's published one."""
    call = engines.attach_published if job.kind_of(settings.engine) == job.PUBLISHED else engines.attach
    return call(settings.engine, model, stepper, plan)


def _shorten(model: nn.Module, longest: float) -> Callable[..., None]:
    """A hook that brings the released gradient to at most the L2 norm `longest`."""

    def hook(*_: Any) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), longest)

    return hook


def train(settings: Settings, task: Task, plan: Mechanism, context: Context) -> Trained:
    """All steps of the mechanism, with the validation loss at fixed ones."""
    stepper = optimizer(settings.optimizer, task.model)
    handle = attach(settings, task.model, stepper, plan)
    if settings.optimizer.gradient_clip is not None:  # registered after the engine's hook, it follows the noise
        stepper.register_step_pre_hook(_shorten(task.model, settings.optimizer.gradient_clip))
    draws = watched(plan, handle, stepper)
    found = Trained(curve=[[0, task.evaluate()]], unprotected=list(handle.unprotected))
    for step, drawn in enumerate(draws):
        rate = settings.optimizer.rate(step, plan.steps)
        for group in stepper.param_groups:
            group["lr"] = rate
        total = torch.zeros((), dtype=torch.float64)
        for physical in physical_batches(drawn, task.physical):
            total += handle.backward(task.losses, task.batch(physical)).double().sum().cpu()
        stepper.step()
        stepper.zero_grad()
        found.drawn += len(drawn)
        if plan.private and handle.clipped_fraction is not None:
            found.clipped.append(handle.clipped_fraction)
        loss = float(total) / len(drawn) if len(drawn) else None
        noted: dict[str, Any] = {"step": step, "batch_size": len(drawn), "learning_rate": rate}
        noted |= {"loss": loss if loss == loss else None, "clipped_fraction": handle.clipped_fraction}
        noted |= handle.thresholds.last if handle.thresholds is not None else {}
        if (step + 1) % settings.evaluate_every == 0 or step + 1 == plan.steps:
            found.curve.append([step + 1, task.evaluate()])
            noted["validation_loss"] = found.curve[-1][1]
        context.steps.write(**noted)
        context.report(step + 1, plan.steps, f"{settings.engine}, validation loss {found.curve[-1][1]:.3f}")
    draws.finish()
    found.ignored = handle.non_finite_examples
    found.thresholds = handle.thresholds.facts if handle.thresholds is not None else {}
    handle.detach()
    return found


def unigram_loss(train: np.ndarray[Any, Any], validation: np.ndarray[Any, Any], vocabulary: int) -> float:
    """Loss of a model that knows the train blocks' token frequencies (each counted once more) and nothing else; not private."""
    counts = np.bincount(train.ravel(), minlength=vocabulary) + 1.0
    return float(-np.log(counts / counts.sum())[validation[:, 1:]].mean())
