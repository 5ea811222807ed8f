"""Pre-train a small GPT from scratch by next-token prediction, and measure its validation loss."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from dpbench import accounting, plugins
from dpbench.errors import DpbenchError
from dpbench.jobs.clipping import GroupSettings
from dpbench.jobs.contract import Context, Outcome, metric
from dpbench.jobs.private import spends
from dpbench.mechanism import Clipping, Mechanism, Sampling, calibrated
from dpbench.models.language import language_model_family
from dpbench.records.schema import Metric, Privacy
from dpbench.spec.expand import Uses
from dpbench.spec.models import label
from dpbench.spec.sources import Source
from dpbench.validation import Strict

PLUGIN = {
    "kind": "job",
    "name": "language_model",
    "version": 1,
    "summary": "pre-train a GPT from scratch and measure its validation loss",
}

PUBLISHED = "published_engine"
WEIGHTS = "model.safetensors"


class Optimizer(Strict):
    """AdamW with a linear warm-up to `learning_rate`, then a cosine down to `min_learning_rate` at the last step.

    weight_decay: of matrices; vectors (biases, LayerNorm) have none. gradient_clip: the released gradient is brought to at most
    this L2 norm; it follows the noise and costs no privacy.
    """

    learning_rate: float = Field(gt=0)
    min_learning_rate: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _falls(self) -> Optimizer:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate:g} is above learning_rate {self.learning_rate:g}")
        return self

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step 0, 1, ... of `steps`; never 0 while warming up."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, steps - 1 - self.warmup_steps)
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * (1 + math.cos(math.pi * done)) / 2


class ClippingSettings(GroupSettings):
    """One of bound (of an example's whole gradient), group_bound (of each of its K groups: sqrt(K) times that in all) and given
    (of each group by itself)."""

    function: str = "abadi"
    scope: str
    bound: float | None = Field(None, gt=0)
    group_bound: float | None = Field(None, gt=0)
    gamma: float = 0.01

    @model_validator(mode="after")
    def _one_bound(self) -> ClippingSettings:
        if sum(value is not None for value in (self.bound, self.group_bound, self.given)) != 1:
            raise ValueError("exactly one of bound, group_bound and given")
        self.must_stand(function=self.function, scope=self.scope, gamma=self.gamma)
        return self

    def made(self, groups: int) -> Clipping:
        """The mechanism's clipping for a model of so many groups."""
        total = self.bound if self.bound is not None else (self.group_bound or 0.0) * math.sqrt(groups)
        rest = {} if self.given is not None else {"bound": total}
        return self.clipping_of(function=self.function, scope=self.scope, gamma=self.gamma, **rest)


class Settings(Strict):
    """One cell: a model, a text, an engine, an epsilon. An example, the unit of privacy, is one block of `tokens` tokens."""

    dataset: str = "wikitext2"
    size: str = Field(description="Size of the GPT-2 or Llama family.")
    vocabulary: int | None = Field(None, ge=258, description="Of tokenizer and model; none: the size's own.")
    tied: bool = Field(False, description="Whether the head is the token embedding.")
    tokens: int = Field(ge=2, description="T, tokens of a block.")
    train_blocks: int = Field(
        ge=1, description="n, blocks that can be drawn: the first of the train split, fewer if it is shorter."
    )
    validation_blocks: int = Field(
        ge=1, description="Blocks that the validation loss is taken over, from the start of its split."
    )
    evaluate_on: Literal["validation", "train_rest"] = Field(
        "validation", description="train_rest: the train split's blocks after those that can be drawn; for choosing settings."
    )
    evaluate_every: int = Field(ge=1, description="Steps between two values of the curve; the last is always taken.")
    engine: str
    clipping: ClippingSettings | None = None
    epsilon: float | None = Field(None, gt=0, description="That the noise multiplier is calibrated for.")
    noise: Literal["calibrated", "flashdp_published"] = Field(
        "calibrated", description="flashdp_published: std noise_multiplier / sqrt(B) on the mean, whatever the bounds (FLASH-1)."
    )
    delta: float | Literal["1/(2n)"] = 1e-5
    relation: Literal["add_or_remove", "replace_one"] = "add_or_remove"
    sampler: Literal["poisson", "fixed"] = "poisson"
    steps: int = Field(ge=1)
    expected_batch_size: float = Field(gt=0)
    optimizer: Optimizer
    token_budget: int = Field(8192, ge=16, description="Tokens of a physical batch.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: float32 weights, products by autocast.")
    device: Literal["cpu", "cuda"] = "cpu"
    save_weights: bool = False
    caveats: list[str] = Field(default_factory=list, description="Reasons for which epsilon is only nominal.")

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        clips = bool(plugins.get(kind_of(self.engine), self.engine).extra["scopes"])
        if clips and (self.clipping is None or self.epsilon is None):
            raise ValueError(f"engine {self.engine} needs clipping and epsilon")
        if not clips and (self.clipping is not None or self.epsilon is not None):
            raise ValueError(f"engine {self.engine} takes neither clipping nor epsilon")
        if not clips and self.noise != "calibrated":
            raise ValueError(f"engine {self.engine} adds no noise")
        if self.noise != "calibrated" and self.clipping is not None and self.clipping.adaptive is not None:
            raise ValueError(f"noise: {self.noise} pays for no adaptive thresholds: what is published has fixed ones")
        if self.expected_batch_size > self.train_blocks:
            raise ValueError(f"expected_batch_size {self.expected_batch_size:g} is more than train_blocks {self.train_blocks}")
        return self


def kind_of(engine: str) -> str:
    """Plug-in kind of an engine: ours and peers', or a paper's published code."""
    return PUBLISHED if engine in plugins.discover(PUBLISHED) else "engine"


def uses(settings: Settings) -> Uses:
    """Versions and sources that decide the numbers."""
    found = [(kind_of(settings.engine), settings.engine)]
    if settings.clipping is not None:
        found += [("function", settings.clipping.function), ("scope", settings.clipping.scope), *settings.clipping.policies]
    return Uses(plugins=tuple(found), datasets=(settings.dataset,), models=(language_model_family(settings.size),))


def mechanism(settings: Settings, groups: int, blocks: int, seed: int) -> Mechanism:
    """The one object that sampler, noise and accountant are made from.

    Under `noise: flashdp_published` the noise multiplier is the one that the published update really has, see
    `published_multiplier`; the stated epsilon is then no target, and the mechanism's own epsilon is the real one.

    Args:
        groups: K, that the clipping's scope makes of the model; blocks: n, that can be drawn.
    """
    sampling = Sampling(settings.sampler, blocks, settings.expected_batch_size)
    delta = 1 / (2 * blocks) if settings.delta == "1/(2n)" else settings.delta
    if settings.clipping is None or settings.epsilon is None:
        return Mechanism(sampling, settings.steps, delta=delta, seed=seed)
    clipping = settings.clipping.made(groups)
    rest: dict[str, Any] = {"relation": settings.relation, "seed": seed, "caveats": tuple(settings.caveats)}
    stated = calibrated(sampling, settings.steps, clipping, settings.epsilon, delta, **rest)
    if settings.noise == "calibrated":
        return spends(stated, settings.epsilon)
    real = published_multiplier(stated.noise_multiplier, settings.expected_batch_size, clipping.bound)
    return Mechanism(sampling, settings.steps, clipping, real, delta, **rest)


def published_multiplier(noise_multiplier: float, batch_size: float, sensitivity: float) -> float:
    """The noise multiplier of FlashDP's published update (FLASH-1): noise_multiplier x sqrt(B) / sensitivity.

    The published code adds noise of std noise_multiplier / sqrt(B) to every tensor of the mean over B examples, which is
    noise_multiplier x sqrt(B) on the sum, whatever the bounds. Over several backward passes the variances add to the same.
    With K groups of bound C the sensitivity of that sum is sqrt(K) x C.
    """
    return noise_multiplier * math.sqrt(batch_size) / sensitivity


def privacy(settings: Settings, plan: Mechanism, unprotected: list[str]) -> Privacy | None:
    """Both accountants' epsilon; none for published code, whatever its noise. None for a non-private run."""
    from dpbench.runner import privacy_of

    if kind_of(settings.engine) == PUBLISHED:
        found = ", ".join(plugins.get(PUBLISHED, settings.engine).extra["deviations"])
        why = f"{found}: no finite epsilon, for {len(unprotected)} tensors are released without clipping and noise"
        return Privacy(
            epsilon=None,
            epsilon_rdp=None,
            target_epsilon=settings.epsilon,
            delta=plan.delta,
            noise_multiplier=plan.noise_multiplier,
            relation=plan.relation,
            validity="nominal",
            reasons=[why, *plan.reasons],
            accountants=accounting.versions(),
        )
    made = privacy_of(plan)
    return made and made.model_copy(update={"target_epsilon": settings.epsilon})


def epsilon_metrics(settings: Settings, found: Privacy | None) -> list[Metric]:
    """The real epsilon, `none` with the reason where there is no finite one, and the stated one."""
    if found is None:
        return [Metric(name="epsilon", value=None, text="none", unit="", note="no clipping and no noise")]
    stated = [metric("stated_epsilon", settings.epsilon or 0.0, "")]
    if found.epsilon is None:
        return [Metric(name="epsilon", value=None, text="none", unit="", note=found.reasons[0]), *stated]
    return [metric("epsilon", found.epsilon, ""), *stated]


def run(settings: Settings, context: Context) -> Outcome:
    """Train, then measure the validation loss.

    Raises:
        DpbenchError: no such device, the text fills too few blocks, the mechanism is out of reach, or a guard of the engine
            stopped the run.
    """
    from dpbench.jobs import pretraining
    from dpbench.jobs.throughput import require_device

    require_device(settings.device)
    task = pretraining.Task(settings, context)
    plan = mechanism(settings, task.groups, len(task.train), context.seed)
    done = pretraining.train(settings, task, plan, context)
    real = privacy(settings, plan, done.unprotected)
    warnings = list(task.warnings)
    warnings += [f"{done.ignored} examples had non-finite gradients and contributed 0"] if done.ignored else []
    if real is not None and real.epsilon is not None and settings.noise != "calibrated":
        warnings.append(f"noise calibrated for epsilon {label(settings.epsilon)} and added as published gives {real.epsilon:.4g}")
    loss = done.curve[-1][1]
    metrics = [metric("validation_loss", loss, "nats/token"), metric("perplexity", math.exp(loss), "")]
    metrics += epsilon_metrics(settings, real)
    if plan.private:
        metrics.append(metric("noise_std", plan.gradient_noise_multiplier * plan.sensitivity, ""))
        metrics.append(metric("clipped_fraction", sum(done.clipped) / max(1, len(done.clipped)), ""))
    else:
        metrics.append(Metric(name="clipped_fraction", value=None, unit="", note="no clipping"))
    facts = {
        "example": f"one block of {settings.tokens} tokens",
        "curve": done.curve,
        "unprotected": done.unprotected,
        "groups": task.groups,
        "mean_batch_size": done.drawn / settings.steps,
        "trained_tokens": done.drawn * settings.tokens,
        **done.thresholds,
        **task.facts,
    }
    artefacts = []
    if settings.save_weights:
        task.save(context.out / WEIGHTS)
        artefacts.append(WEIGHTS)
    return Outcome(metrics, plan.describe(), real, facts, artefacts, warnings, settings.device)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: data schema, the model on the meta device with its engine, and the budget."""
    from dpbench.data import registry as datasets
    from dpbench.jobs import pretraining

    datasets.check(settings.dataset, sources[f"dataset:{settings.dataset}"])
    model = pretraining.model_of(settings, meta=True)
    plan = mechanism(settings, pretraining.groups_of(settings, model), settings.train_blocks, 0)
    handle = pretraining.attach(settings, model, pretraining.optimizer(settings.optimizer, model), plan)
    leaks = list(handle.unprotected)
    handle.detach()
    if leaks and kind_of(settings.engine) != PUBLISHED:
        raise DpbenchError(f"engine {settings.engine} leaves {leaks[0]} unprotected")
    remarks = [f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"]
    if leaks:
        remarks.append(f"epsilon none: {len(leaks)} tensors unprotected, as published")
    elif plan.private:
        remarks.append(f"epsilon {plan.epsilon():.4g} at noise multiplier {plan.noise_multiplier:.3g}")
    return remarks
